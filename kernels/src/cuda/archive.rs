//! Compiled kernels of several architectures in one file.
//!
//! Lines of text, an empty one after them, then the code of all entries, one behind the other, each compressed by itself
//! (DEFLATE):
//!
//! ```text
//! anyfleet-cubins 1
//! <SHA-256 of all that follows this line>
//! sources <`hash()` of the sources and flags>
//! compiler NVRTC 12.8
//! norm sm_80 <bytes here> <bytes of the code>
//! norm compute_80 <bytes here> <bytes of the code>
//! ```
use super::{Code, nearness};
use sha2::{Digest, Sha256};
use std::fmt::Write;

const MAGIC: &[u8] = b"anyfleet-cubins 1\n";
/// Larger code is none of ours.
const LARGEST: usize = 64 << 20;

/// An archive, read from bytes that hold it.
pub struct Archive<'a> {
    compiler: &'a str,
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    module: &'a str,
    target: &'a str,
    packed: &'a [u8],
    size: usize,
}

impl<'a> Archive<'a> {
    /// Reads the index.
    ///
    /// # Errors
    /// One line: that it is damaged, or of other sources than this program's.
    pub fn open(bytes: &'a [u8]) -> Result<Archive<'a>, String> {
        let damaged = |what: &str| format!("the archive of compiled kernels is damaged: {what}");
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("it does not begin as one"))?;
        let (digest, rest) = split(rest, b"\n").ok_or_else(|| damaged("it ends early"))?;
        if digest != hexadecimal(&Sha256::digest(rest)).as_bytes() {
            return Err(damaged("its SHA-256 is another"));
        }
        let (index, mut code) = split(rest, b"\n\n").ok_or_else(|| damaged("its index has no end"))?;
        let index = std::str::from_utf8(index).map_err(|_| damaged("its index is no text"))?;
        let mut lines = index.lines();
        match lines.next().and_then(|line| line.strip_prefix("sources ")) {
            Some(hash) if hash == super::hash() => {}
            Some(_) => return Err("the archive of compiled kernels is of other sources than this program's".into()),
            None => return Err(damaged("it does not say what its sources are")),
        }
        let compiler = lines.next().and_then(|line| line.strip_prefix("compiler "));
        let compiler = compiler.ok_or_else(|| damaged("it does not say what compiled it"))?;
        let mut entries = Vec::new();
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            let [module, target, packed, size] = words[..] else { return Err(damaged(line)) };
            let number = |word: &str| word.parse().ok().filter(|&n| n <= LARGEST);
            let (packed, size) = number(packed).zip(number(size)).ok_or_else(|| damaged(line))?;
            let (packed, rest) = code.split_at_checked(packed).ok_or_else(|| damaged(line))?;
            entries.push(Entry { module, target, packed, size });
            code = rest;
        }
        Ok(Archive { compiler, entries })
    }

    /// Name and version of what compiled it, e.g. "NVRTC 12.8".
    pub fn compiler(&self) -> &'a str {
        self.compiler
    }

    /// The code of a module that is nearest to a device's compute capability, e.g. 90.
    pub fn find(&self, module: &str, capability: u32) -> Option<Code> {
        let of_module = self.entries.iter().filter(|entry| entry.module == module);
        let runs = of_module.filter_map(|entry| nearness(entry.target, capability).map(|near| (near, entry)));
        let (_, entry) = runs.max_by_key(|(near, _)| *near)?;
        let code = miniz_oxide::inflate::decompress_to_vec_with_limit(entry.packed, entry.size).ok()?;
        if code.len() != entry.size {
            return None;
        }
        Some(if entry.target.starts_with("sm_") { Code::Cubin(code) } else { Code::Ptx(code) })
    }
}

/// Makes an archive of the code for modules and targets.
pub fn pack(compiler: &str, entries: &[(&str, &str, &[u8])]) -> Vec<u8> {
    let mut index = format!("sources {}\ncompiler {compiler}\n", super::hash());
    let mut code = Vec::new();
    for (module, target, bytes) in entries {
        let packed = miniz_oxide::deflate::compress_to_vec(bytes, 10);
        writeln!(index, "{module} {target} {} {}", packed.len(), bytes.len()).expect("writing to a string");
        code.extend(packed);
    }
    let rest = [index.as_bytes(), b"\n", &code].concat();
    [MAGIC, hexadecimal(&Sha256::digest(&rest)).as_bytes(), b"\n", &rest].concat()
}

fn split<'a>(bytes: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let start = bytes.windows(at.len()).position(|window| window == at)?;
    Some((&bytes[..start], &bytes[start + at.len()..]))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Vec<u8> {
        pack(
            "none",
            &[("norm", "sm_80", b"instructions"), ("norm", "compute_80", b"text\0"), ("linear", "sm_90a", b"")],
        )
    }

    /// With the digest that its bytes ask for, so that what checks come after it are reached.
    fn sealed(rest: &[u8]) -> Vec<u8> {
        [MAGIC, hexadecimal(&Sha256::digest(rest)).as_bytes(), b"\n", rest].concat()
    }

    #[test]
    fn what_was_packed_is_found() {
        let bytes = small();
        let archive = Archive::open(&bytes).unwrap();
        assert_eq!(archive.compiler(), "none");
        assert_eq!(archive.find("norm", 86), Some(Code::Cubin(b"instructions".to_vec())));
        assert_eq!(archive.find("norm", 90), Some(Code::Ptx(b"text\0".to_vec())));
        assert_eq!(archive.find("norm", 75), None);
        assert_eq!(archive.find("linear", 90), Some(Code::Cubin(Vec::new())));
        assert_eq!(archive.find("linear", 120), None);
        assert_eq!(archive.find("absent", 80), None);
    }

    #[test]
    fn damage_is_an_error() {
        let bytes = small();
        for end in 0..bytes.len() {
            assert!(Archive::open(&bytes[..end]).is_err(), "{end} bytes of {}", bytes.len());
        }
        for at in 0..bytes.len() {
            for flip in [1u8, 0x20, 0x80] {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                assert!(Archive::open(&bytes).is_err(), "byte {at} flipped by {flip}");
            }
        }
    }

    #[test]
    fn damage_under_a_right_digest_never_panics() {
        let bytes = small();
        let rest = &bytes[MAGIC.len() + 65..];
        let look = |rest: &[u8]| {
            if let Ok(archive) = Archive::open(&sealed(rest)) {
                for entry in &archive.entries {
                    for capability in [75, 80, 90, 120] {
                        archive.find(entry.module, capability);
                    }
                }
            }
        };
        (0..rest.len()).for_each(|end| look(&rest[..end]));
        for at in 0..rest.len() {
            for value in [0, b' ', b'\n', b'9', b'z', 0xff] {
                let mut rest = rest.to_vec();
                rest[at] = value;
                look(&rest);
            }
        }
    }

    #[test]
    fn other_sources_are_refused() {
        let error = Archive::open(&sealed(b"sources 00\ncompiler none\n\n")).err().unwrap();
        assert_eq!(error, "the archive of compiled kernels is of other sources than this program's");
        assert!(Archive::open(&sealed(b"compiler none\n\n")).is_err());
        let unknown = format!("sources {}\nnorm sm_80 0 0\n\n", super::super::hash());
        let error = Archive::open(&sealed(unknown.as_bytes())).err().unwrap();
        assert!(error.ends_with("it does not say what compiled it"), "{error}");
    }
}
