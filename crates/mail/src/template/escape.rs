//! Escaping for HTML.

/// Escapes the special characters of HTML text and of attributes in double quotes. Apostrophes are not special in either,
/// and stay: not every email client that shows a preview understands `&#39;`.
pub(super) fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    push_escaped(&mut escaped, text);
    escaped
}

/// Appends a text as [`escape_html`] returns it.
pub(super) fn push_escaped(escaped: &mut String, text: &str) {
    let mut rest = text;
    while let Some(at) = rest.find(['&', '<', '>', '"']) {
        escaped.push_str(&rest[..at]);
        escaped.push_str(match rest.as_bytes()[at] {
            b'&' => "&amp;",
            b'<' => "&lt;",
            b'>' => "&gt;",
            _ => "&quot;",
        });
        rest = &rest[at + 1..];
    }
    escaped.push_str(rest);
}
