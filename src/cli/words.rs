//! How things are said on the terminal.

use std::io::{BufRead, Write, stderr, stdin};

use chrono::{DateTime, TimeDelta, Utc};

/// How long ago something was: `8 s`, `3 min`, `5 h`, `12 d`.
pub fn age(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let age = now - at;
    match () {
        () if age < TimeDelta::minutes(2) => format!("{} s", age.num_seconds().max(0)),
        () if age < TimeDelta::hours(2) => format!("{} min", age.num_minutes()),
        () if age < TimeDelta::days(2) => format!("{} h", age.num_hours()),
        () => format!("{} d", age.num_days()),
    }
}

/// `1 dead letter`, `3 dead letters`, `2 entries`
pub fn count(number: u64, what: &str) -> String {
    match (number, what.strip_suffix('y')) {
        (1, _) => format!("1 {what}"),
        (_, Some(start)) => format!("{number} {start}ies"),
        (_, None) => format!("{number} {what}s"),
    }
}

/// Text from outside, for the terminal: whatever could move the cursor, change colours or turn the direction of writing is
/// shown as an escape.
pub fn printable(text: &str) -> String {
    let is_plain = |c: char| match c {
        '\n' | '\t' => true,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        _ => !c.is_control(),
    };
    text.chars().map(|c| if is_plain(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

/// Asks on the terminal. Only a clear yes is one.
pub fn ask(question: &str) -> std::io::Result<bool> {
    let mut err = stderr().lock();
    err.write_all(question.as_bytes())?;
    err.flush()?;
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_the_unit_that_says_most() {
        let now = Utc::now();
        let check = |seconds, expected: &str| assert_eq!(age(now - TimeDelta::seconds(seconds), now), expected);
        check(-5, "0 s");
        check(119, "119 s");
        check(120, "2 min");
        check(7_200, "2 h");
        check(172_800, "2 d");
    }

    #[test]
    fn text_from_outside_cannot_play_with_the_terminal() {
        assert_eq!(printable("a\u{1b}[31m\u{9b}é\u{202e}\nb"), "a\\u{1b}[31m\\u{9b}é\\u{202e}\nb");
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(count(1, "entry"), "1 entry");
        assert_eq!(count(0, "mail"), "0 mails");
        assert_eq!(count(2, "entry"), "2 entries");
    }
}
