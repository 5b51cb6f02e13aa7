//! The model that a device is checked with.
use anyfleet_weights::Bundle;

static FILES: [(&str, &[u8]); 3] = [
    ("config.json", include_bytes!("../parity/fixtures/qwen3-mixed/config.json")),
    ("model.safetensors", include_bytes!("../parity/fixtures/qwen3-mixed/model.safetensors")),
    ("expected.json", include_bytes!("../parity/fixtures/qwen3-mixed/expected.json")),
];

/// A tiny model of random weights, with windows in some layers, norms of query and key heads and biases. Its file
/// `expected.json`, which `models/parity/README.md` describes, has what Hugging Face transformers computes.
pub fn check_model() -> Bundle {
    Bundle { name: "check", files: &FILES }
}

#[cfg(test)]
mod tests {
    use super::check_model;

    #[test]
    fn it_opens_and_has_its_answers() {
        let model = crate::open_model(check_model()).unwrap();
        assert_eq!(model.spec.family, "qwen3");
        let expected: serde_json::Value = serde_json::from_slice(check_model().file("expected.json").unwrap()).unwrap();
        assert_eq!(expected["schema"], 1);
    }
}
