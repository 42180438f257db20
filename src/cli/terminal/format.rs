//! Values as text for people.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

/// The time since `at`, in one unit: `8 s`, `3 min`, `5 h`, `12 d`.
pub fn age(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let age = now - at;
    match () {
        () if age < TimeDelta::minutes(2) => format!("{} s", age.num_seconds().max(0)),
        () if age < TimeDelta::hours(2) => format!("{} min", age.num_minutes()),
        () if age < TimeDelta::days(2) => format!("{} h", age.num_hours()),
        () => format!("{} d", age.num_days()),
    }
}

/// A number and its noun: `1 dead letter`, `3 dead letters`, `2 entries`.
pub fn count(number: u64, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(start)) => format!("{number} {start}ies"),
        (_, None) => format!("{number} {noun}s"),
    }
}

/// In UTC, with milliseconds.
pub fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Makes text from outside safe for the terminal: characters that could move the cursor, change colours or change the writing
/// direction are escaped.
pub fn printable(text: &str) -> String {
    let is_plain = |c: char| match c {
        '\n' | '\t' => true,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        _ => !c.is_control(),
    };
    text.chars().map(|c| if is_plain(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        let now = Utc::now();
        let check = |seconds, expected: &str| assert_eq!(age(now - TimeDelta::seconds(seconds), now), expected);
        check(-5, "0 s");
        check(119, "119 s");
        check(120, "2 min");
        check(7_200, "2 h");
        check(172_800, "2 d");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("a\u{1b}[31m\u{9b}é\u{202e}\nb"), "a\\u{1b}[31m\\u{9b}é\\u{202e}\nb");
    }

    #[test]
    fn nouns_agree_with_their_number() {
        assert_eq!(count(1, "entry"), "1 entry");
        assert_eq!(count(0, "email"), "0 emails");
        assert_eq!(count(2, "entry"), "2 entries");
    }
}
