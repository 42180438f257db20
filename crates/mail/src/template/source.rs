//! The template files: built in, and from a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::problem::TemplateProblem;
use crate::kind::EmailKind;
use crate::locale::parse_tag;

/// The built-in files of a folder: folder, name, text.
macro_rules! files_in {
    ($folder:literal: $($file:literal)*) => {
        &[$((Some($folder), $file, include_str!(concat!("../../../../templates/", $folder, "/", $file)))),*]
    };
}

/// The built-in files of a language.
macro_rules! language {
    ($folder:literal) => {
        files_in!($folder:
            "_greeting.md" "_facts.md" "_ending.md" "_invoices.md" "_decline.md" "_decline_cause.md"
            "_footer.account_manager.md" "_footer.organization_contact.md"
            "cancelled-by-admin.account_manager.md"
            "removed-by-admin.account_manager.md"
            "cancelled-by-client.organization_contact.md" "cancelled-by-client.account_manager.md"
            "cancellation-requested.organization_contact.md" "cancellation-requested.account_manager.md"
            "request-accepted.account_manager.md"
            "request-declined.account_manager.md"
            "payment-failed.organization_contact.md" "payment-failed.account_manager.md"
            "card-expiring.organization_contact.md" "card-expiring.account_manager.md"
            "requests-pending.organization_contact.md"
        )
    };
}

/// The built-in files of the design, for all languages.
macro_rules! design {
    ($($file:literal)*) => {
        &[$((None, $file, include_str!(concat!("../../../../templates/", $file)))),*]
    };
}

/// Folder (`None`: for all languages), name, text.
type BuiltInFile = (Option<&'static str>, &'static str, &'static str);

const BUILT_IN: &[&[BuiltInFile]] = &[
    design!("_layout.mjml" "_headline.mjml" "_paragraph.mjml" "_notice.mjml" "_button.mjml" "_facts.mjml" "_fact.mjml"
        "_quote.mjml" "_small-print.mjml"),
    language!("en"),
    language!("es"),
    files_in!("es-ES":
        "_decline.md" "_decline_cause.md"
        "cancelled-by-client.organization_contact.md" "cancelled-by-client.account_manager.md"
        "cancellation-requested.account_manager.md"
        "payment-failed.organization_contact.md" "payment-failed.account_manager.md"
        "card-expiring.organization_contact.md" "card-expiring.account_manager.md"
    ),
    files_in!("es-MX":
        "_ending.md" "_invoices.md"
        "cancelled-by-admin.account_manager.md" "removed-by-admin.account_manager.md"
        "cancelled-by-client.organization_contact.md" "cancelled-by-client.account_manager.md"
        "cancellation-requested.organization_contact.md" "cancellation-requested.account_manager.md"
        "request-accepted.account_manager.md" "request-declined.account_manager.md"
        "payment-failed.organization_contact.md" "payment-failed.account_manager.md"
        "requests-pending.organization_contact.md"
    ),
    language!("fr"),
    files_in!("fr-CA":
        "_decline.md" "_decline_cause.md" "_footer.account_manager.md" "_footer.organization_contact.md"
    ),
];

/// A template file that was read.
pub(super) struct SourceFile {
    pub(super) place: Place,
    /// The path, for problems.
    pub(super) path: String,
    /// `None` for a file that could not be read, which is reported already.
    pub(super) text: Option<String>,
    pub(super) is_built_in: bool,
}

/// The place of a file among the templates. A file replaces an earlier one at the same place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The folder of a language; `None` for the design.
    pub(super) locale: Option<String>,
    pub(super) name: String,
}

pub(super) fn built_in() -> impl Iterator<Item = SourceFile> {
    BUILT_IN.iter().copied().flatten().map(|&(locale, name, text)| SourceFile {
        place: Place { locale: locale.map(str::to_owned), name: name.to_owned() },
        path: match locale {
            Some(locale) => format!("templates/{locale}/{name}"),
            None => format!("templates/{name}"),
        },
        text: Some(text.to_owned()),
        is_built_in: true,
    })
}

/// Reads a directory with the same layout as the built-in one.
pub(super) fn read(directory: &Path, problems: &mut BTreeSet<TemplateProblem>) -> Vec<SourceFile> {
    let mut reader = Reader { problems, files: vec![] };
    reader.read_directory(directory);
    reader.files
}

struct Reader<'a> {
    problems: &'a mut BTreeSet<TemplateProblem>,
    files: Vec<SourceFile>,
}

impl Reader<'_> {
    fn problem(&mut self, path: &Path, message: impl Into<String>) {
        let file = path.display().to_string();
        self.problems.insert(TemplateProblem { file, line: None, message: message.into() });
    }

    fn read_directory(&mut self, directory: &Path) {
        let mut folders: BTreeMap<String, PathBuf> = BTreeMap::new();
        for (name, path) in self.entries(directory) {
            if !path.is_dir() {
                self.read_file(Place { locale: None, name }, &path);
            } else if let Some(tag) = parse_tag(&name) {
                let locale = tag.to_string();
                if let Some(other) = folders.insert(locale.clone(), path.clone()) {
                    self.problem(
                        &path,
                        format!("a second folder for {locale}, beside {}: put all files into one", other.display()),
                    );
                    continue;
                }
                for (name, path) in self.entries(&path) {
                    self.read_file(Place { locale: Some(locale.clone()), name }, &path);
                }
            } else {
                self.problem(&path, "not a language tag such as `pt` or `fr-CA`");
            }
        }
    }

    /// The entries of a directory, sorted, without the files of editors and systems.
    fn entries(&mut self, directory: &Path) -> Vec<(String, PathBuf)> {
        let read = fs::read_dir(directory).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match read {
            Ok(entries) => {
                let mut entries: Vec<_> = entries
                    .into_iter()
                    .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
                    .filter(|(name, _)| !name.starts_with('.') && !name.ends_with('~') && name != "README.md")
                    .collect();
                entries.sort();
                entries
            }
            Err(error) => {
                self.problem(directory, format!("cannot be read: {error}"));
                vec![]
            }
        }
    }

    fn read_file(&mut self, place: Place, path: &Path) {
        if !is_template(&place) {
            let message = "not a template: expected an email such as `payment-failed.account_manager.md`, a partial such as \
                           `_greeting.md`, or a part of the design such as `_layout.mjml`";
            self.problem(path, message);
            return;
        }
        let text = fs::read(path)
            .map_err(|error| error.to_string())
            .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned()));
        if let Err(error) = &text {
            self.problem(path, format!("cannot be read: {error}"));
        }
        self.files.push(SourceFile { place, path: path.display().to_string(), text: text.ok(), is_built_in: false });
    }
}

fn is_template(place: &Place) -> bool {
    match place.name.rsplit_once('.') {
        Some((stem, "md")) => {
            stem.starts_with('_') || place.locale.is_some() && EmailKind::all().any(|kind| stem == kind.to_string())
        }
        Some((stem, "mjml")) => stem.starts_with('_'),
        _ => false,
    }
}
