//! Checks of a `Precompiled` normalizer: SentencePiece's double-array trie from byte strings to
//! replacements (`Darts` in sentencepiece's `normalizer.cc`).
//!
//! Layout after base64: `u32` little-endian, the size of the trie in bytes; the trie, `u32` units; the
//! replacements, one after the other, each ended by a zero byte. The library reserves what the size says
//! and indexes the units by what the units say, so every unit that a text can reach is visited here.

use std::collections::HashSet;

use serde_json::Value;

/// Checks the map; returns the largest ratio of a replacement's length to that of its key.
pub(crate) fn check(field: &Value) -> Result<f64, String> {
    let text = field.as_str().ok_or("precompiled_charsmap is not a string")?;
    let blob = base64(text).ok_or("precompiled_charsmap is not base64")?;
    let (size, rest) = blob.split_first_chunk::<4>().ok_or("precompiled_charsmap is cut short")?;
    let size = u32::from_le_bytes(*size) as usize;
    if size > rest.len() || !size.is_multiple_of(4) || size == 0 {
        return Err(format!("precompiled_charsmap says {size} bytes of trie, it has {}", rest.len()));
    }
    let (units, replacements) = rest.split_at(size);
    let units: Vec<u32> = units.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let replacements =
        std::str::from_utf8(replacements).map_err(|_| "the replacements of precompiled_charsmap are not UTF-8")?;
    walk(&units, replacements).ok_or_else(|| "the trie of precompiled_charsmap is inconsistent".to_owned())
}

/// Visits every reachable state; `None` when one leads outside the arrays.
fn walk(units: &[u32], replacements: &str) -> Option<f64> {
    let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
    let label = |unit: u32| unit & ((1 << 31) | 0xFF);
    let root = offset(units[0]);
    let mut growth: f64 = 1.0;
    let mut seen = HashSet::from([root]);
    let mut stack = vec![(root, 0usize)];
    while let Some((state, depth)) = stack.pop() {
        for byte in 1..=255u32 {
            let at = state ^ byte as usize;
            let unit = *units.get(at)?;
            if label(unit) != byte {
                continue;
            }
            let next = at ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let value = (*units.get(next)? & !(1 << 31)) as usize;
                let replacement = replacements.get(value..)?;
                let length = replacement.find('\0').unwrap_or(replacement.len());
                growth = growth.max(length as f64 / (depth + 1) as f64);
            }
            if seen.insert(next) {
                stack.push((next, depth + 1));
            }
        }
    }
    Some(growth)
}

/// Standard base64 (RFC 4648), padded, strict as the library's decoder is.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(4) {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len() / 4 * 3);
    let groups = bytes.len() / 4;
    for (at, group) in bytes.chunks_exact(4).enumerate() {
        let padding = group.iter().rev().take_while(|&&b| b == b'=').count();
        if padding > 2 || (padding > 0 && at + 1 != groups) {
            return None;
        }
        let mut bits = 0u32;
        for &b in &group[..4 - padding] {
            bits = bits << 6 | u32::from(digit(b)?);
        }
        bits <<= 6 * padding as u32;
        let three = [(bits >> 16) as u8, (bits >> 8) as u8, bits as u8];
        let (kept, dropped) = three.split_at(3 - padding);
        if dropped.iter().any(|&b| b != 0) {
            return None;
        }
        out.extend_from_slice(kept);
    }
    Some(out)
}
