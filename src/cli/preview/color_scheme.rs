//! An email in light or dark mode, whatever mode the system is in.

/// The mode that a reader prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Light,
    Dark,
}

/// The page as readers with this colour scheme see it: each media query about the scheme becomes one that is always true or
/// always false.
pub fn as_preferred(html: &str, scheme: Scheme) -> String {
    let (yes, no) = ("min-width: 0", "max-width: 0");
    let mut answered = String::with_capacity(html.len());
    let mut rest = html;
    while let Some((before, after)) = rest.split_once("prefers-color-scheme") {
        answered.push_str(before);
        let (question, after) = after.split_once(')').unwrap_or((after, ""));
        let is_preferred = match question.trim_start_matches([':', ' ']).trim_end() {
            "dark" => scheme == Scheme::Dark,
            _ => scheme == Scheme::Light,
        };
        answered.push_str(if is_preferred { yes } else { no });
        answered.push(')');
        rest = after;
    }
    answered.push_str(rest);
    answered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_queries_about_the_colour_scheme_become_constant() {
        let html = "<style>@media (prefers-color-scheme: dark) { a {} } \
                    @media screen and (prefers-color-scheme:light){ b {} }</style>";
        let (yes, no) = ("(min-width: 0)", "(max-width: 0)");
        let expected = |dark: &str, light: &str| {
            format!("<style>@media {dark} {{ a {{}} }} @media screen and {light}{{ b {{}} }}</style>")
        };
        assert_eq!(as_preferred(html, Scheme::Dark), expected(yes, no));
        assert_eq!(as_preferred(html, Scheme::Light), expected(no, yes));
        assert_eq!(as_preferred("<p>é", Scheme::Dark), "<p>é");
    }
}
