//! The bundled model.
use anyfleet_weights::Bundle;

/// Bytes at the alignment of a cache line.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// Aligned like a memory map, so that weights are lent as they lie here.
static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../pocket/model.safetensors"));

static FILES: [(&str, &[u8]); 6] = [
    ("config.json", include_bytes!("../pocket/config.json")),
    ("generation_config.json", include_bytes!("../pocket/generation_config.json")),
    ("model.safetensors", &WEIGHTS.0),
    ("tokenizer.json", include_bytes!("../pocket/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../pocket/tokenizer_config.json")),
    ("chat_template.jinja", include_bytes!("../pocket/chat_template.jinja")),
];

/// The model `pocket`: a small chat model whose files, those of the folder `models/pocket`, are part of
/// the program.
///
/// ```
/// let model = anyfleet_models::open_model(anyfleet_models::pocket())?;
/// assert_eq!(model.dir.files().to_string(), "bundled model pocket");
/// # Ok::<(), anyfleet_weights::Error>(())
/// ```
pub fn pocket() -> Bundle {
    Bundle { name: "pocket", files: &FILES }
}

#[cfg(test)]
mod tests {
    use super::pocket;
    use crate::open_model;

    #[test]
    fn it_is_sound_and_small() {
        let model = open_model(pocket()).unwrap();
        assert_eq!(model.weights.unused(&model.dir), [""; 0]);
        let weights = pocket().file("model.safetensors").unwrap();
        assert!(weights.as_ptr().addr().is_multiple_of(64));
        assert!(weights.len() < 8_000_000, "{} bytes in every program that bundles it", weights.len());
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/pocket");
        assert_eq!(open_model(folder).unwrap().dir.identity(), model.dir.identity());
    }
}
