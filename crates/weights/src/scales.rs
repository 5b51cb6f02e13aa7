//! Tensors of floats of eight bits (E4M3), and the scales that published checkpoints have beside them.
//!
//! What a tensor is multiplied with is called `<name>_scale_inv` (by DeepSeek, and Qwen after it; it is no inverse) or
//! `<name>_scale` (compressed-tensors, fbgemm, modelopt). Its shape says what shares a scale: all of the tensor, an output
//! feature, or a block. What else these formats have is for activations of eight bits, to which nothing here rounds.
use crate::{Config, Error, ModelDir, Result, Section};
use anyfleet_tensor::{DType, HostScales, f8};

/// Endings of a tensor's name where its scales are.
const ENDINGS: [&str; 2] = ["_scale_inv", "_scale"];

/// Tensors that belong to activations, keys and values: scales measured ahead, where they are made as they come.
const OF_ACTIVATIONS: [&str; 6] = ["input_scale", "input_scale_ub", "output_scale", "q_scale", "k_scale", "v_scale"];

/// Rows and columns of a block where the config has no word of it.
const BLOCK: [usize; 2] = [128, 128];
const MAX_BLOCK: usize = 1 << 20;

/// The tensor that a name is the scales of, by the name alone.
pub(crate) fn scaled(name: &str) -> Option<&str> {
    ENDINGS.iter().find_map(|ending| name.strip_suffix(ending))
}

/// Whether a tensor of this name is about activations of eight bits.
pub(crate) fn of_activations(name: &str) -> bool {
    OF_ACTIVATIONS.contains(&name.rsplit('.').next().unwrap_or(name))
}

/// Rows and columns that share a scale, as the config says it: `weight_block_size`, or the `block_structure` of the first
/// group that has one.
///
/// # Errors
/// [`Error::Config`] where it is no pair of numbers.
pub(crate) fn block(config: &Config) -> Result<Option<[usize; 2]>> {
    let root = config.root();
    let Some(quantization) = root.section("quantization_config")? else { return Ok(None) };
    if let Some(block) = pair(&quantization, "weight_block_size")? {
        return Ok(Some(block));
    }
    let Some(groups) = quantization.section("config_groups")? else { return Ok(None) };
    for group in groups.keys() {
        let weights = groups.section(group)?.map(|group| group.section("weights")).transpose()?.flatten();
        if let Some(block) = weights.map(|weights| pair(&weights, "block_structure")).transpose()?.flatten() {
            return Ok(Some(block));
        }
    }
    Ok(None)
}

fn pair(section: &Section<'_>, key: &str) -> Result<Option<[usize; 2]>> {
    let Some(numbers) = section.uints(key, 1..=MAX_BLOCK)? else { return Ok(None) };
    let pair: [usize; 2] = numbers.try_into().map_err(|_| section.error(key, "rows and columns of a block"))?;
    Ok(Some(pair))
}

impl ModelDir {
    /// What the tensor `name` of eight bits and this shape is multiplied with.
    ///
    /// # Errors
    /// [`Error::Tensor`] when its scales are missing, have a shape that is none of those above, or are not finite.
    pub(crate) fn scales(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<HostScales<'_>> {
        let found = ENDINGS.iter().map(|ending| format!("{name}{ending}")).find(|name| self.contains(name));
        let Some(found) = found else {
            let reason = format!(
                "has dtype F8_E4M3, but there are no scales for it: neither {name}{} nor {name}{}; download the checkpoint again",
                ENDINGS[0], ENDINGS[1]
            );
            return Err(Error::tensor(self.file_of(name), name, reason));
        };
        let view = self.tensor(&found)?;
        let bad = |reason: String| Err(Error::tensor(self.file_of(&found), &found, reason));
        let size = self.block.unwrap_or(BLOCK);
        let (grid, whole) = ([rows.div_ceil(size[0]), cols.div_ceil(size[1])], [rows.max(1), cols.max(1)]);
        // A block, and how many there are side by side.
        let (block, side) = match *view.shape {
            [] | [1] | [1, 1] => (whole, 1),
            [count] | [count, 1] if count == rows => ([1, whole[1]], 1),
            [down, side] if [down, side] == grid => (size, side),
            _ => {
                return bad(format!(
                    "has shape {:?}, which is none of scales for [{rows}, {cols}]: one for all, [{rows}, 1] for rows, or \
                     {grid:?} for blocks of {size:?}; the two are not of one model",
                    view.shape
                ));
            }
        };
        if !view.dtype.is_float() {
            return bad("has dtype F8_E4M3; scales are f32, bf16 or f16".into());
        }
        if !finite(view.dtype, view.bytes) {
            return bad("has scales that are not finite, or too large; download the checkpoint again".into());
        }
        Ok(HostScales { dtype: view.dtype, bytes: view.bytes, cols: side, turned: false, block, first: [0, 0] })
    }
}

/// Whether the products of all these scales with the largest number of eight bits are finite.
fn finite(dtype: DType, bytes: &[u8]) -> bool {
    let mut values = Vec::with_capacity(bytes.len() / dtype.size());
    crate::weight::extend_f32(&mut values, dtype, bytes);
    values.iter().all(|scale| (scale * f8::MAX).is_finite())
}
