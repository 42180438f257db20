//! How an organization's emails look with another brand: whether a logo stays visible, whether a button stays a button.

use offramp_domain::facts::OrganizationFacts;
use offramp_mail::{brand_color, default_brand_color};
use serde::Serialize;

/// The logo of organizations that are not real. No server has this name (RFC 2606).
const STAND_IN_URL: &str = "https://logo.invalid/logo.svg";

/// The path of the stand-in logo in a colour.
const STAND_IN_PATH: &str = "/logo/";

/// The brand in which the samples are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Look {
    /// The organization's own.
    #[default]
    Own,
    /// Without a logo.
    WithoutLogo,
    /// A logo in the brand's colour.
    WithLogo,
    White,
    Pale,
    Black,
}

/// A look in the list of the page.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ListedLook {
    name: &'static str,
    words: &'static str,
}

impl Look {
    const ALL: [Self; 6] = [Self::Own, Self::WithoutLogo, Self::WithLogo, Self::White, Self::Pale, Self::Black];

    pub fn list() -> impl Iterator<Item = ListedLook> {
        Self::ALL.into_iter().map(Self::listed)
    }

    fn listed(self) -> ListedLook {
        let (name, words) = match self {
            Self::Own => ("own", "as it is"),
            Self::WithoutLogo => ("without-logo", "without a logo"),
            Self::WithLogo => ("with-logo", "with a logo in its colour"),
            Self::White => ("white", "white"),
            Self::Pale => ("pale", "very light"),
            Self::Black => ("black", "black"),
        };
        ListedLook { name, words }
    }

    /// The look of a query, `look=white`; without one, the organization's own. `None`: there is no such look.
    pub fn of_query(query: &str) -> Option<Self> {
        match url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "look") {
            Some((_, name)) => Self::ALL.into_iter().find(|look| look.listed().name == name),
            None => Some(Self::default()),
        }
    }

    /// Changes the organization. `is_sample`: it has no real logo.
    pub fn apply(self, organization: &mut OrganizationFacts, is_sample: bool) {
        let color = match self {
            Self::Own | Self::WithoutLogo | Self::WithLogo => None,
            Self::White => Some("#ffffff"),
            Self::Pale => Some("#fff3c4"),
            Self::Black => Some("#000000"),
        };
        if let Some(color) = color {
            organization.color = Some(color.to_owned());
        }
        let has_stand_in = match self {
            Self::WithoutLogo => {
                organization.logo_url = None;
                false
            }
            Self::Own => is_sample && organization.logo_url.is_some(),
            Self::WithLogo | Self::White | Self::Pale | Self::Black => is_sample || organization.logo_url.is_none(),
        };
        if has_stand_in || self == Self::WithLogo {
            organization.logo_url = Some(STAND_IN_URL.to_owned());
        }
    }
}

/// The HTML of an email, with the stand-in logo from here: on the internet there is none.
pub fn with_stand_in_logo(html: &str, organization: &OrganizationFacts) -> String {
    let color = organization.color.as_deref().and_then(brand_color);
    let color = color.unwrap_or_else(default_brand_color);
    html.replace(STAND_IN_URL, &format!("{STAND_IN_PATH}{}.svg", color.trim_start_matches('#')))
}

/// The stand-in logo in the colour of a file name, `0a7d4f.svg`, on a transparent background: like most logos, in the colour
/// of the brand.
pub fn stand_in_logo(file: &str) -> Option<String> {
    let color = file.strip_suffix(".svg")?;
    if color.len() != 6 || !color.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    // Brands in white have a dark logo.
    let color = if color.eq_ignore_ascii_case("ffffff") { "20242a" } else { color };
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"260\" height=\"96\" fill=\"#{color}\">\
         <path d=\"M48 10a38 38 0 1 0 38 38h-19a19 19 0 1 1-19-19z\"/><circle cx=\"74\" cy=\"22\" r=\"11\"/>\
         <text x=\"104\" y=\"66\" font-size=\"52\" font-weight=\"700\" font-family=\"sans-serif\">Logo</text></svg>"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stand_in_logo_has_one_colour_and_nothing_else_from_its_name() {
        assert!(stand_in_logo("0a7d4f.svg").is_some_and(|svg| svg.contains("fill=\"#0a7d4f\"")));
        assert!(stand_in_logo("FFFFFF.svg").is_some_and(|svg| svg.contains("fill=\"#20242a\"")));
        for name in ["0a7d4f", "0a7d4.svg", "\"><script>.svg", "gold12.svg", ".svg", "é12é.svg"] {
            assert_eq!(stand_in_logo(name), None, "{name}");
        }
    }

    #[test]
    fn a_query_names_a_look() {
        for look in Look::ALL {
            assert_eq!(Look::of_query(&format!("7&look={}", look.listed().name)), Some(look));
        }
        assert_eq!(Look::of_query(""), Some(Look::Own));
        assert_eq!(Look::of_query("look=<script>"), None);
    }

    #[test]
    fn looks_change_the_colour_and_the_logo_only() {
        #[track_caller]
        fn check(look: Look, is_sample: bool, logo: Option<&str>, expected: (Option<&str>, Option<&str>)) {
            let mut organization: OrganizationFacts = serde_json::from_value(serde_json::json!({
                "name": "Club", "email": "a@b.example", "color": "#0a7d4f", "logo_url": logo,
            }))
            .unwrap();
            look.apply(&mut organization, is_sample);
            assert_eq!((organization.color.as_deref(), organization.logo_url.as_deref()), expected, "{look:?}");
        }
        let (own, green) = (Some("https://club.example/logo.png"), Some("#0a7d4f"));
        check(Look::Own, true, own, (green, Some(STAND_IN_URL)));
        check(Look::Own, true, None, (green, None));
        check(Look::Own, false, own, (green, own));
        check(Look::Own, false, None, (green, None));
        check(Look::WithoutLogo, false, own, (green, None));
        check(Look::WithLogo, false, own, (green, Some(STAND_IN_URL)));
        check(Look::White, false, own, (Some("#ffffff"), own));
        check(Look::White, false, None, (Some("#ffffff"), Some(STAND_IN_URL)));
        check(Look::Black, true, own, (Some("#000000"), Some(STAND_IN_URL)));
    }
}
