//! The support matrix: which op takes which types on which backend, as far as the suite agrees.
use crate::case::{Outcome, Types, Verdict};
use crate::report::Report;
use anyfleet_tensor::DType;
use std::collections::BTreeSet;

/// Where the table starts in `kernels/README.md`.
pub const BEGIN: &str = "<!-- support matrix: begin (generated; see above) -->";
/// Where it ends.
pub const END: &str = "<!-- support matrix: end -->";

/// A backend's name and its reports, one for each kernel set.
pub type Column<'a> = (&'a str, Vec<&'a Report>);

/// A Markdown table with a row for each op and combination of types and a column for each backend.
pub fn table(columns: &[Column<'_>]) -> String {
    let outcomes = |(_, reports): &Column<'_>| reports.iter().flat_map(|r| r.outcomes.clone()).collect();
    let by_column: Vec<Vec<Outcome>> = columns.iter().map(outcomes).collect();
    let rows: BTreeSet<(&str, Types)> = by_column.iter().flatten().map(|o| (o.op, o.types)).collect();
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let mut text = format!("| op | activations | weights | KV | {} |\n", names.join(" | "));
    text += &format!("|{}\n", "---|".repeat(4 + columns.len()));
    for (op, types) in rows {
        let cells = by_column.iter().map(|outcomes| cell(outcomes, op, types)).collect::<Vec<_>>().join(" | ");
        let activation = types.activation.map_or("f32 logits", DType::name);
        let weight = types.weight.map_or_else(String::new, |w| w.to_string());
        let kv = types.kv.map_or("", DType::name);
        text += &format!("| `{op}` | {activation} | {weight} | {kv} | {cells} |\n");
    }
    text
}

fn cell(outcomes: &[Outcome], op: &str, types: Types) -> &'static str {
    let here = outcomes.iter().filter(|o| o.op == op && o.types == types);
    let verdicts: Vec<Verdict> = here.map(|o| o.verdict).collect();
    if verdicts.contains(&Verdict::Fail) || verdicts.contains(&Verdict::Error) {
        "fails"
    } else if verdicts.contains(&Verdict::Pass) {
        "yes"
    } else {
        "-"
    }
}

/// Whether the table in `text` says of a backend what its reports do, row by row.
pub fn agrees(text: &str, backend: &str, reports: &[&Report]) -> bool {
    /// Op, types and the cell of the backend, of each row.
    fn rows(table: &str, backend: &str) -> Option<Vec<Vec<String>>> {
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let mut lines = table.lines().filter(|line| line.starts_with('|'));
        let column = cells(lines.next()?).iter().position(|name| name == backend)?;
        // A backend that does not know the types has no cell for them in its own table.
        let row = |line| {
            let cells = cells(line);
            [&cells[1..5], &cells[column..=column]].concat()
        };
        Some(lines.skip(1).map(row).filter(|row| row[4] != "-").collect())
    }
    let part = text.split_once(BEGIN).and_then(|(_, rest)| Some(rest.split_once(END)?.0));
    let own = table(&[(backend, reports.to_vec())]);
    part.and_then(|part| rows(part, backend)).is_some_and(|found| Some(found) == rows(&own, backend))
}

/// `text` with the lines between the markers replaced by `table`.
///
/// # Errors
/// A line for people when the markers are not there.
pub fn replace(text: &str, table: &str) -> Result<String, String> {
    let parts = text.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = parts.ok_or(format!("the markers `{BEGIN}` and `{END}` are missing"))?;
    Ok(format!("{head}{BEGIN}\n{table}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_another_backend_or_without_a_row_does_not_agree() {
        use crate::suite::{Options, Tier, suite};
        use anyfleet_tensor::null::NullBackend;
        let report = suite(&NullBackend::default(), &Options::new(Tier::Small, 1));
        let text = format!("{BEGIN}\n{}{END}", table(&[("a", vec![]), ("b", vec![&report])]));
        assert!(agrees(&text, "b", &[&report]));
        assert!(!agrees(&text, "a", &[&report]) && !agrees(&text, "c", &[&report]) && !agrees("", "b", &[&report]));
        assert!(!agrees(&text.replacen("fails", "yes", 1), "b", &[&report]));
        let line = text.lines().find(|line| line.contains("fails")).unwrap().to_owned() + "\n";
        assert!(!agrees(&text.replacen(&line, "", 1), "b", &[&report]));
    }

    #[test]
    fn replace_keeps_what_is_around() {
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        assert_eq!(replace(&text, "new\n").unwrap(), format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert!(replace("nothing", "new\n").is_err());
    }
}
