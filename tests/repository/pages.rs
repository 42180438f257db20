//! The documentation: links and paths lead to existing files, the table of contents is complete, and the README stays short.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, LinkType, Options, Parser, Tag, TagEnd};

use crate::{files, repository};

/// The parts of a documentation page that these tests compare.
#[derive(Default)]
struct Page {
    /// Targets of its links, as written.
    links: Vec<String>,
    /// Anchors of its headings.
    anchors: BTreeSet<String>,
    /// Inline code.
    code: Vec<String>,
}

impl Page {
    fn read(file: &Path) -> Self {
        let text = fs::read_to_string(file).unwrap();
        let (mut page, mut heading) = (Self::default(), None::<String>);
        let mut taken = BTreeMap::<String, usize>::new();
        for event in Parser::new_ext(&text, Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES) {
            match event {
                Event::Start(Tag::Link { link_type, dest_url, .. }) if link_type != LinkType::Email => {
                    page.links.push(dest_url.to_string());
                }
                Event::Start(Tag::Image { dest_url, .. }) => page.links.push(dest_url.to_string()),
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let anchor = anchor(&heading.take().unwrap_or_default());
                    let count = taken.entry(anchor.clone()).or_default();
                    page.anchors.insert(if *count == 0 { anchor } else { format!("{anchor}-{count}") });
                    *count += 1;
                }
                Event::Code(code) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&code);
                    }
                    page.code.push(code.to_string());
                }
                Event::Text(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        page
    }
}

/// The anchor of a heading, as forges and mdBook generate it.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading.to_lowercase().chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn pages() -> BTreeMap<PathBuf, Page> {
    // The files in templates/ are emails: their links contain placeholders.
    let is_email = |file: &Path| file.starts_with(repository().join("templates")) && !file.ends_with("README.md");
    let files = files(repository(), "md").into_iter().filter(|file| !is_email(file));
    files.map(|file| (file.clone(), Page::read(&file))).collect()
}

/// Resolves `.` and `..` without access to the file system.
fn normalized(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut normalized, part| {
        match part {
            std::path::Component::ParentDir => drop(normalized.pop()),
            std::path::Component::CurDir => {}
            part => normalized.push(part),
        }
        normalized
    })
}

fn relative(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap_or(path).display().to_string()
}

#[test]
fn links_lead_to_an_existing_file_and_heading() {
    let pages = pages();
    assert!(pages.len() > 5, "{} pages were read", pages.len());
    let mut broken = Vec::new();
    for (file, page) in &pages {
        for link in page.links.iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (path, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(path, anchor)| (path, Some(anchor)));
            let target = if path.is_empty() { file.clone() } else { normalized(&file.parent().unwrap().join(path)) };
            let has_anchor = |anchor: &str| pages.get(&target).is_some_and(|page| page.anchors.contains(anchor));
            if !target.exists() || !anchor.is_none_or(has_anchor) {
                broken.push(format!("{}: {link}", relative(file)));
            }
        }
    }
    assert_eq!(broken, [""; 0]);
}

#[test]
fn paths_in_sentences_exist() {
    const FOLDERS: [&str; 12] = [
        "src/",
        "crates/",
        "tests/",
        "docs/",
        "scripts/",
        "templates/",
        "schemas/",
        "benches/",
        "examples/",
        "fuzz/",
        ".github/",
        "deploy/",
    ];
    let mut missing = Vec::new();
    for (file, page) in pages() {
        if file.ends_with("CHANGELOG.md") {
            continue;
        }
        for code in &page.code {
            let is_path = FOLDERS.iter().any(|folder| code.starts_with(folder))
                && !code.contains(|c: char| c.is_whitespace() || "*{}<>…$".contains(c));
            let path = code.split("::").next().unwrap_or_default();
            if is_path && !repository().join(path).exists() && !file.parent().unwrap().join(path).exists() {
                missing.push(format!("{}: {code}", relative(&file)));
            }
        }
    }
    assert_eq!(missing, [""; 0]);
}

#[test]
fn the_table_of_contents_lists_every_page() {
    let docs = repository().join("docs");
    let summary = docs.join("SUMMARY.md");
    let listed: BTreeSet<_> = Page::read(&summary).links.iter().map(|link| normalized(&docs.join(link))).collect();
    let missing: Vec<_> = files(&docs, "md")
        .iter()
        .filter(|page| **page != summary && !listed.contains(*page))
        .map(|page| relative(page))
        .collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn the_readme_is_short() {
    let bytes = fs::metadata(repository().join("README.md")).unwrap().len();
    assert!(bytes < 8 * 1024, "README.md has {bytes} bytes; move details to docs/");
}

/// Without a language, a code block is not highlighted, and a tested example could be skipped by mistake.
#[test]
fn code_blocks_name_their_language() {
    let mut unnamed = Vec::new();
    for file in files(repository(), "md") {
        let text = fs::read_to_string(&file).unwrap();
        for (event, range) in Parser::new_ext(&text, Options::ENABLE_TABLES).into_offset_iter() {
            if let Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) = event
                && language.is_empty()
            {
                unnamed.push(format!("{}:{}", relative(&file), text[..range.start].lines().count() + 1));
            }
        }
    }
    assert_eq!(unnamed, [""; 0]);
}

/// The command line owns the names of settings; advice on them belongs to `src/advice.rs`.
#[test]
fn adapters_never_name_settings() {
    let mut found = Vec::new();
    for folder in ["crates/domain/src", "crates/mail/src", "src/amqp", "src/store"] {
        for file in files(&repository().join(folder), "rs") {
            let text = fs::read_to_string(&file).unwrap();
            let lines = text.lines().enumerate().filter(|(_, line)| line.contains("OFFRAMP_"));
            found.extend(lines.map(|(index, _)| format!("{}:{}", relative(&file), index + 1)));
        }
    }
    assert_eq!(found, [""; 0]);
}
