//! Libraries that may be in one of several places.
use std::ffi::{OsStr, OsString};

/// The first of these files that `open` takes.
///
/// # Errors
/// Why the first of those that are there was not taken: it is what somebody meant to be used. Where none is there, that of the
/// first.
pub(crate) fn first<T>(files: &[OsString], open: impl Fn(&OsStr) -> Result<T, String>) -> Result<T, String> {
    let mut told: Option<(bool, String)> = None;
    for file in files {
        match open(file) {
            Ok(found) => return Ok(found),
            Err(reason) => {
                let there = !is_absent(file, &reason);
                if told.as_ref().is_none_or(|(other, _)| there && !other) {
                    told = Some((there, reason));
                }
            }
        }
    }
    Err(told.map_or_else(String::new, |(_, reason)| reason))
}

/// Whether the system's loader means the file itself: what a library that is there needs may not be there, either.
fn is_absent(file: &OsStr, reason: &str) -> bool {
    reason.contains(&format!("{}: ", file.display())) && reason.contains("No such file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_what_is_there_is_told() {
        let files = ["a.so", "b.so", "c.so", "d.so"].map(OsString::from);
        let tell = |reasons: [&str; 4]| {
            let which = |file: &OsStr| files.iter().position(|other| other == file).unwrap();
            first(&files, |file| match reasons[which(file)] {
                "" => Ok(file.to_owned()),
                reason => Err(reason.to_owned()),
            })
        };
        let absent = "a.so: cannot open shared object file: No such file or directory";
        let of_others = ["b.so", "c.so", "d.so"].map(|file| absent.replace("a.so", file));
        let [b, c, d] = [&*of_others[0], &*of_others[1], &*of_others[2]];
        assert_eq!(tell([absent, b, "", d]), Ok("c.so".into()));
        assert_eq!(tell([absent, b, c, d]), Err(absent.into()));
        assert_eq!(tell([absent, "b.so: undefined symbol: x", "too old", d]), Err("b.so: undefined symbol: x".into()));
        let needs = "libz.so.1: cannot open shared object file: No such file or directory";
        assert_eq!(tell([absent, b, needs, d]), Err(needs.into()));
    }
}
