//! The header of a safetensors file, checked completely before anything is used.
//!
//! A file is an 8-byte little-endian length, a JSON object of that many bytes that maps a tensor's
//! name to its dtype, shape and byte range, and the data. The format
//! (<https://github.com/huggingface/safetensors>, "Format") allows neither overlaps nor holes, so a
//! file whose ranges fit together exactly is the only one accepted.
use crate::error::quote;
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

/// Longest header in bytes: the format's own limit.
const MAX_HEADER: u64 = 100_000_000;
/// Most tensors in one file; the largest published checkpoints have fewer than 100,000.
const MAX_TENSORS: usize = 1 << 20;
/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;

/// One entry of the header.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes of the file, the header included.
    pub range: Range<usize>,
}

/// Bytes of the header, its length prefix included, from the first 8 bytes of a file.
pub(crate) fn header_end(file_len: u64, prefix: [u8; 8]) -> Result<usize, String> {
    let len = u64::from_le_bytes(prefix);
    if len > MAX_HEADER {
        return Err(format!(
            "claims a header of {len} bytes, but at most {MAX_HEADER} are allowed; it is not a safetensors file or it is damaged"
        ));
    }
    let end = len + 8;
    if end > file_len {
        return Err(format!(
            "is truncated: its header needs {end} bytes, but the file has {file_len}; download it again"
        ));
    }
    Ok(end as usize)
}

/// Parses and checks the header `json` of a file of `file_len` bytes whose data begin at `data`.
pub(crate) fn parse(json: &[u8], data: usize, file_len: usize) -> Result<Vec<Entry>, String> {
    let text = std::str::from_utf8(json).map_err(|e| format!("has a header that is not UTF-8 ({e}); {AGAIN}"))?;
    if !text.starts_with('{') {
        return Err(format!("has a header that does not start with '{{'; {AGAIN}"));
    }
    let Raw(mut raw) =
        serde_json::from_str(text).map_err(|e| format!("has a damaged header: {}; {AGAIN}", quote(&e.to_string())))?;
    raw.sort_by_key(|(_, tensor)| tensor.data_offsets);

    let have = file_len - data;
    let mut at = 0;
    let mut entries = Vec::with_capacity(raw.len());
    for (name, tensor) in raw {
        let (start, end) = tensor.data_offsets;
        let bad = |what: String| Err(format!("has tensor {} {what}; {AGAIN}", quote(&name)));
        let elements = tensor.shape.0.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bits = elements.and_then(|n| n.checked_mul(tensor.dtype.bitsize()));
        let Some(bytes) = bits.filter(|b| b % 8 == 0).map(|b| b / 8) else {
            return bad(format!("of impossible size {:?} {:?}", tensor.shape.0, tensor.dtype));
        };
        if end.checked_sub(start) != Some(bytes) {
            return bad(format!(
                "at bytes {start}..{end}, but its shape {:?} {:?} takes {bytes} bytes",
                tensor.shape.0, tensor.dtype
            ));
        }
        if start < at {
            return bad(format!("at bytes {start}..{end} overlapping the one before, which ends at {at}"));
        }
        if start > at {
            return bad(format!("at bytes {start}..{end} after a hole of {} bytes that belongs to none", start - at));
        }
        at = end;
        entries.push(Entry {
            name,
            dtype: tensor.dtype,
            shape: tensor.shape.0,
            // Cannot wrap where it fits the file, which is checked once the end is known.
            range: data.saturating_add(start)..data.saturating_add(end),
        });
    }
    if at > have {
        let need = data.saturating_add(at);
        return Err(format!("is truncated: its tensors need {need} bytes, but the file has {file_len}; {AGAIN}"));
    }
    if at < have {
        return Err(format!("has {} bytes after the last tensor that belong to none; {AGAIN}", have - at));
    }
    Ok(entries)
}

const AGAIN: &str = "download it again";

struct Raw(Vec<(String, RawTensor)>);

#[derive(Deserialize)]
struct RawTensor {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (usize, usize),
}

/// A shape of bounded rank: a header of 100 MB could otherwise hold one shape of 50 million
/// dimensions.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a shape of at most {MAX_RANK} dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    if dims.len() == MAX_RANK {
                        return Err(A::Error::custom(format_args!("a shape has more than {MAX_RANK} dimensions")));
                    }
                    dims.push(dim);
                }
                Ok(Shape(dims))
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Raw;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut tensors = Vec::new();
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format_args!("{} appears twice", quote(&name))));
                    }
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else if tensors.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
                    } else {
                        tensors.push((name, map.next_value()?));
                    }
                }
                Ok(Raw(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}
