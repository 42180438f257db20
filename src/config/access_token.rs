//! A token that people log in with.

use std::fmt;

use subtle::ConstantTimeEq;

/// The shortest token, in characters.
const CHARS_MIN: usize = 16;
const CHARS_MAX: usize = 512;

/// A secret that is compared in constant time and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(String);

impl AccessToken {
    /// # Errors
    /// A sentence, when the text is too short, too long, or nothing that can be typed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let token = text.trim();
        if token.chars().count() < CHARS_MIN {
            return Err(format!("it has fewer than {CHARS_MIN} characters; `openssl rand -hex 16` makes a good one"));
        }
        if token.chars().count() > CHARS_MAX || token.chars().any(char::is_control) {
            return Err(format!("it has more than {CHARS_MAX} characters, or control characters"));
        }
        Ok(Self(token.to_owned()))
    }

    /// Whether this is what somebody typed.
    #[must_use]
    pub fn is(&self, typed: &str) -> bool {
        self.0.as_bytes().ct_eq(typed.trim().as_bytes()).into()
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_compared_whole_and_never_shown() {
        assert!(AccessToken::parse("short").unwrap_err().contains("16 characters"));
        assert!(AccessToken::parse("with\na line break in it").is_err());
        let token = AccessToken::parse("0123456789abcdef\n").unwrap();
        assert!(token.is("0123456789abcdef") && token.is(" 0123456789abcdef "));
        assert!(!token.is("0123456789abcde") && !token.is("0123456789abcdef0") && !token.is(""));
        assert_eq!(format!("{token:?}"), "AccessToken(***)");
    }
}
