//! Text from outside, made fit for one line: headers, subjects, error texts.

/// One line. Each run of spaces and control characters becomes one space. Overrides of the writing direction, which could
/// make the rest of the line read backwards, are removed. Non-breaking spaces stay.
#[must_use]
pub(crate) fn single_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    let mut gap = false;
    for c in text.chars().filter(|&c| !is_direction_override(c)) {
        if c.is_control() || c == ' ' || matches!(c, '\u{2028}' | '\u{2029}') {
            gap = true;
        } else {
            if gap && !line.is_empty() {
                line.push(' ');
            }
            gap = false;
            line.push(c);
        }
    }
    line
}

/// Whether `c` embeds, overrides or isolates a writing direction. Plain right-to-left marks do not.
#[must_use]
pub(crate) fn is_direction_override(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Cuts a text to `chars_max` characters. The last one of a cut text is `…`.
#[must_use]
pub(crate) fn shorten(text: &str, chars_max: usize) -> String {
    if text.chars().nth(chars_max).is_none() {
        return text.to_owned();
    }
    let kept: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}
