//! For each reader and email, the newest templates that can render it. While an author's file has a mistake, its last valid
//! version is shown; the other emails are shown as they are now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use offramp_domain::notification::Notification;
use offramp_mail::samples::samples;
use offramp_mail::{EmailKind, RenderError, RenderedEmail, Templates};

/// Locales with the currencies of the samples.
const READERS: [&str; 3] = ["en-CA", "es-MX", "fr-CA"];

/// The newest valid templates of each email, for each reader.
#[derive(Clone, Debug)]
pub struct NewestValid {
    newest: Arc<Templates>,
    /// By locale and email. Emails that are not written in a language have no entry.
    by_reader: BTreeMap<String, HashMap<EmailKind, Version>>,
}

#[derive(Clone, Debug)]
struct Version {
    templates: Arc<Templates>,
    /// Whether the email's files have a mistake now.
    is_outdated: bool,
}

impl NewestValid {
    /// `newest` alone, for its own languages and those among the `wanted` locales that it has.
    pub fn new(newest: Arc<Templates>, wanted: &[String]) -> Self {
        let mut by_reader = BTreeMap::new();
        for locale in readers(&newest, wanted) {
            let mut versions = HashMap::new();
            for kind in EmailKind::all().filter(|kind| renders(&newest, &locale, *kind)) {
                versions.insert(kind, Version { templates: Arc::clone(&newest), is_outdated: false });
            }
            by_reader.insert(locale, versions);
        }
        Self { newest, by_reader }
    }

    /// The same, with the `earlier` version of each email that `newest` cannot render although `is_written`.
    pub fn with_earlier(mut self, earlier: &Self, is_written: impl Fn(&str, EmailKind) -> bool) -> Self {
        for (locale, versions) in &mut self.by_reader {
            for kind in EmailKind::all() {
                let version = earlier.by_reader.get(locale).and_then(|versions| versions.get(&kind));
                if let Some(version) = version
                    && !versions.contains_key(&kind)
                    && is_written(locale, kind)
                {
                    versions.insert(kind, Version { is_outdated: true, ..version.clone() });
                }
            }
        }
        self
    }

    /// Whether the email is written in this language.
    pub fn has(&self, locale: &str, kind: EmailKind) -> bool {
        self.by_reader.get(locale).is_some_and(|versions| versions.contains_key(&kind))
    }

    pub fn locales(&self) -> impl Iterator<Item = &str> {
        self.by_reader.keys().map(String::as_str)
    }

    /// The locale of the list that is closest to `locale`.
    pub fn closest(&self, locale: &str) -> String {
        language(&self.newest, locale)
    }

    /// The emails that are not written in a language, by locale.
    pub fn missing(&self) -> BTreeMap<&str, BTreeSet<String>> {
        self.emails_where(|version| version.is_none())
    }

    /// The emails whose files have a mistake, so that an earlier version is shown, by locale.
    pub fn outdated(&self) -> BTreeMap<&str, BTreeSet<String>> {
        self.emails_where(|version| version.is_some_and(|version| version.is_outdated))
    }

    fn emails_where(&self, is_one: impl Fn(Option<&Version>) -> bool) -> BTreeMap<&str, BTreeSet<String>> {
        let with_names = self.by_reader.iter().map(|(locale, versions)| {
            let kinds = EmailKind::all().filter(|kind| is_one(versions.get(kind)));
            (locale.as_str(), kinds.map(|kind| kind.to_string()).collect::<BTreeSet<_>>())
        });
        with_names.filter(|(_, names)| !names.is_empty()).collect()
    }

    /// Renders an email. `Ok(None)`: it is not written in this language yet.
    pub fn render(&self, notification: &Notification) -> Result<Option<RenderedEmail>, RenderError> {
        let templates = match self.by_reader.get(&notification.locale) {
            Some(versions) => match versions.get(&EmailKind::of(notification)) {
                Some(version) => &version.templates,
                None => return Ok(None),
            },
            None => &self.newest,
        };
        templates.render(notification).map(Some)
    }
}

/// The locales of the templates, those with the currencies of the samples, and the `wanted` ones.
fn readers(templates: &Templates, wanted: &[String]) -> BTreeSet<String> {
    let others = READERS.into_iter().chain(wanted.iter().map(String::as_str));
    // In templates without the language, the closest one is English.
    others.map(|locale| language(templates, locale)).chain(templates.locales()).collect()
}

/// The locale in which a reader with `locale` gets emails.
fn language(templates: &Templates, locale: &str) -> String {
    first_sample_of_any(locale).map_or_else(String::new, |sample| templates.language(&sample))
}

fn first_sample_of_any(locale: &str) -> Option<Notification> {
    first_sample(locale, EmailKind::all().next()?)
}

fn first_sample(locale: &str, kind: EmailKind) -> Option<Notification> {
    samples(kind.template, kind.recipient, locale).into_iter().map(|sample| sample.notification).next()
}

/// Whether the templates have this email in this language, and not only in another one.
fn renders(templates: &Templates, locale: &str, kind: EmailKind) -> bool {
    let rendered = first_sample(locale, kind).and_then(|sample| templates.render(&sample).ok());
    rendered.is_some_and(|rendered| rendered.language == locale)
}
