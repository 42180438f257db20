//! What the forms share that change several things at once.

use maud::{Markup, html};
use serde::Deserialize;

/// The fields of a form, as often as they occur.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// The first value of a field; empty without one.
    pub fn get(&self, name: &str) -> &str {
        self.all(name).next().unwrap_or_default()
    }

    /// Every value of a field.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// `drop-group`: what to do, and to what.
    pub fn action(&self) -> (&str, &str) {
        self.get("action").split_once('-').unwrap_or_default()
    }

    pub fn is_confirmed(&self) -> bool {
        self.get("confirmed") == "yes"
    }

    /// The page to go back to, which must be one of those below `section`.
    pub fn back<'a>(&'a self, section: &'a str) -> &'a str {
        let back = self.get("back");
        if back.starts_with(section) { back } else { section }
    }

    /// A form that sends the same again to `section`, confirmed, with further fields.
    pub fn confirmation(&self, section: &str, further: &[(&str, String)], button: &str) -> Markup {
        html! {
            form.actions method="post" action={ (section) "/change" } {
                @for (name, value) in &self.0 { input type="hidden" name=(name) value=(value); }
                @for (name, value) in further { input type="hidden" name=(name) value=(value); }
                input type="hidden" name="confirmed" value="yes";
                button.danger { (button) } " "
                a href=(self.back(section)) { "Keep them" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_leads_back_to_its_own_section_only() {
        for (back, leads_to) in [
            ("/emails?state=waiting", "/emails?state=waiting"),
            ("https://elsewhere.example/emails", "/emails"),
            ("//elsewhere.example", "/emails"),
            ("", "/emails"),
        ] {
            let fields = Fields(vec![("back".to_owned(), back.to_owned())]);
            assert_eq!(fields.back("/emails"), leads_to, "{back}");
        }
    }
}
