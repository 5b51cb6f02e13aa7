//! Where a report goes: a JSON file, and a table for people.
use crate::Result;
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file of `--json`, made before anything is measured: a wrong path should not cost minutes.
pub struct JsonFile {
    file: Option<(File, PathBuf)>,
}

impl JsonFile {
    /// Makes the file, where one was asked for.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(path: Option<&Path>) -> Result<JsonFile> {
        let create = |path: &Path| match File::create(path) {
            Ok(file) => Ok((file, path.to_owned())),
            Err(e) => Err(format!("{}: cannot be written: {e}", path.display())),
        };
        Ok(JsonFile { file: path.map(create).transpose()? })
    }

    /// Writes the report.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(self, report: &Value) -> Result<()> {
        let Some((mut file, path)) = self.file else { return Ok(()) };
        writeln!(file, "{report:#}").map_err(|e| format!("{}: cannot be written: {e}", path.display()))
    }
}

/// Columns aligned to the right but the first, two spaces apart.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells
            .zip(&widths)
            .enumerate()
            .map(|(i, (cell, &width))| if i == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") })
            .collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// Prints to standard output; whoever closed it has seen enough.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Tells on standard error what is being done.
pub fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["a".into(), "1.25".into()], vec!["bcd".into(), "10".into()]];
        assert_eq!(table(&["x", "y"], &rows), "x       y\na    1.25\nbcd    10\n");
    }

    #[test]
    fn a_wrong_path_is_known_at_once() {
        let error = JsonFile::create(Some(Path::new("/nowhere/at/all.json"))).err().unwrap();
        assert!(error.starts_with("/nowhere/at/all.json: cannot be written: "), "{error}");
        assert!(JsonFile::create(None).unwrap().write(&Value::Null).is_ok());
    }
}
