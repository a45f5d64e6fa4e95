//! Tables and figures for people: aligned columns, heads, sizes.
//!
//! Control characters of names that came from elsewhere never reach the terminal.

use serde_json::Value;

/// Rows in columns as wide as their widest cell; the last one is not padded.
pub(super) fn print(rows: &[Vec<String>]) {
    print!("{}", text(rows));
}

/// The same as a text.
pub(super) fn text(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A text as a terminal may show it.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A text of an answer; a dash where there is none.
pub(super) fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A head as `epoch.seq`, with the commit's first ten digits.
pub(super) fn head(value: &Value) -> String {
    match (&value["epoch"], &value["seq"], value["commit"].as_str()) {
        (Value::Number(epoch), Value::Number(seq), Some(commit)) => {
            format!("{epoch}.{seq} {}", commit.get(..10).unwrap_or(commit))
        }
        _ => "nothing".to_owned(),
    }
}

/// A size of an answer.
pub(super) fn size(value: &Value) -> String {
    value.as_u64().map_or("-".to_owned(), |bytes| indicatif::HumanBytes(bytes).to_string())
}

/// Milliseconds of an answer.
pub(super) fn millis(value: &Value) -> String {
    match value.as_u64() {
        None => "-".to_owned(),
        Some(millis @ 0..10_000) => format!("{millis} ms"),
        Some(millis) => format!("{} s", millis / 1000),
    }
}

/// The items of a list in an answer.
pub(super) fn items<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer[name].as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_align_and_no_control_character_passes() {
        let rows = [["a", "bcd", "e"], ["äö", "b", "\u{1b}[31m"]];
        let rows = rows.map(|row| row.map(ToOwned::to_owned).to_vec());
        assert_eq!(text(&rows), "a   bcd  e\näö  b    \u{fffd}[31m\n");
    }

    #[test]
    fn what_is_missing_has_a_word() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(head(&json!({ "epoch": 1, "seq": 7, "commit": commit })), "1.7 0123456789");
        assert_eq!(head(&json!({ "epoch": null })), "nothing");
        assert_eq!(
            (word(&json!(null)), millis(&json!(9)), millis(&json!(61_500))),
            ("-".to_owned(), "9 ms".to_owned(), "61 s".to_owned())
        );
        assert!(items(&json!({ "a": 1 }), "a").is_empty());
    }
}
