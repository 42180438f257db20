//! Values of settings without their secrets, for errors and logs.

/// Begins every key and certificate in PEM form. Only such a value has more than one line.
pub(super) const PEM: &str = "-----BEGIN ";

/// A setting's value without its secrets, whether it is valid or not. In a URL, `***` replaces the user name, the password and
/// all parameters. A key is replaced as a whole.
#[must_use]
pub fn redact(text: &str) -> String {
    if text.contains(PEM) {
        return "***".to_owned();
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        // Possibly a URL without its scheme. An email address has no colon.
        return match text.rsplit_once('@') {
            Some((user, host)) if user.contains(':') => format!("***@{host}"),
            _ => text.to_owned(),
        };
    };
    let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(_, rest)| ("***@", rest));
    let (rest, parameters) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?***"));
    format!("{scheme}://{user}{rest}{parameters}")
}
