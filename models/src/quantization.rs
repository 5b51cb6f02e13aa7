//! Which quantized checkpoints can be loaded: floats of eight bits with scales, by whatever tool they were made.
//!
//! The tensors themselves say which of them have eight bits and what shares a scale; the config is only asked for what
//! cannot be read. Activations are not rounded to eight bits, whatever `activation_scheme` or `input_activations` say:
//! they keep what the device gives them, so that results are nearer to the unquantized model's.
use anyfleet_weights::{Result, Section, quote};

/// Refuses weights that are quantized in another way.
pub(crate) fn check(root: &Section<'_>) -> Result<()> {
    let Some(quantization) = root.section("quantization_config")? else { return Ok(()) };
    let method = quantization.text("quant_method")?;
    let (eight_bits, kind) = match method {
        Some("fp8" | "fbgemm_fp8") => (true, None),
        Some("compressed-tensors") => {
            let format = quantization.text("format")?;
            (format == Some("float-quantized"), format)
        }
        Some("modelopt") => {
            let kind = quantization.text("quant_algo")?;
            (kind == Some("FP8"), kind)
        }
        _ => (false, None),
    };
    if eight_bits {
        return Ok(());
    }
    let named: Vec<String> = method.into_iter().chain(kind).map(quote).collect();
    let named = if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) };
    Err(root.unsupported(format!(
        "the weights are quantized{named}, which is not supported; use a checkpoint in f32, bf16 or f16 without \
         quantization_config, or one of floats of eight bits (fp8, fbgemm_fp8, compressed-tensors with float-quantized, \
         modelopt with FP8)"
    )))
}
