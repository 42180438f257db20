//! `offramp import`: writes documents from a file to the database.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::{Context, bail};
use bson::Document;
use clap::Args;
use offramp::document_check::{Doubt, ImportDoubts};
use offramp::jsonl::ImportLine;
use offramp::store::import::{IMPORT_DOCUMENTS_MAX, ImportCounts, ImportOptions};
use offramp::store::{Collection, Store};

use super::input::Input;
use super::settings::DatabaseArgs;
use super::terminal::{count, printable, progress};

/// Create or update organizations, accounts and subscriptions from a file
#[derive(Args, Debug)]
#[command(after_help = "\
A line is {\"collection\": \"subscriptions\", \"document\": {\"_id\": …}}, with instants as {\"$date\": \"2026-06-15T04:00:00Z\"}. \
Fields in the file replace those in the database; other fields are kept. In documents that exist, so are the fields that only \
Offramp writes, such as status; subscriptions that an administrator removed stay removed. \
The whole file is checked first. Nothing is written if a line is invalid or has a duplicate key, or if a document is given twice, \
has a field that would prevent a decision, or names an organization or account that is neither in the file nor in the database. \
What is probably not meant is printed as a warning: a next invoice that is on no billing date, an end that does not fit the organization's \
time zone, email addresses and locales that cannot be read, misspelt names of fields. \
`offramp schemas` prints the JSON Schemas of documents.

Examples:
  offramp import documents.jsonl --dry-run
  offramp import documents.jsonl")]
pub struct Arguments {
    /// File with one document per line; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Check the file and count what would change, without writing
    #[arg(long)]
    dry_run: bool,

    /// In existing documents, also replace the fields that Offramp writes
    ///
    /// Decisions since the file was made are lost, and emails may be sent again
    #[arg(long)]
    overwrite_state: bool,

    /// Also import documents that the worker could not process
    ///
    /// They have a field that would prevent a decision, or name an organization or account that does not exist
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

/// The largest number of errors printed.
const MISTAKES_SHOWN_MAX: usize = 20;
/// The largest number of warnings printed.
const WARNINGS_SHOWN_MAX: u64 = 20;

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { file, dry_run, overwrite_state, force, database } = arguments;
    let input = Input::open(&file)?;
    let store = database.open().await?;
    let mut doubts = ImportDoubts::default();
    let total = check(&input, &store, &mut doubts, force).await?;
    warn(&input, &store, doubts).await?;

    let options = ImportOptions { overwrite_state, dry_run };
    let bar = progress(total, "documents");
    let mut documents: BTreeMap<Collection, usize> = BTreeMap::new();
    let mut counts = ImportCounts::default();
    let mut waiting: BTreeMap<Collection, Vec<Document>> = BTreeMap::new();
    for line in input.lines()? {
        let ImportLine { collection, document } = ImportLine::parse(&line?)?;
        *documents.entry(collection).or_default() += 1;
        let batch = waiting.entry(collection).or_default();
        batch.push(document);
        if batch.len() == IMPORT_DOCUMENTS_MAX {
            counts.add(import(&store, collection, &std::mem::take(batch), options).await?);
            bar.inc(IMPORT_DOCUMENTS_MAX as u64);
        }
    }
    for (collection, batch) in waiting.into_iter().filter(|(_, batch)| !batch.is_empty()) {
        counts.add(import(&store, collection, &batch, options).await?);
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();

    let of_each: Vec<String> =
        documents.iter().map(|(collection, count)| format!("{count} {}", collection.as_str())).collect();
    let of_each = if of_each.is_empty() { String::new() } else { format!(" ({})", of_each.join(", ")) };
    let total = count(total, "document");
    let database = database.name();
    let mut out = stdout().lock();
    if dry_run {
        writeln!(out, "{total}{of_each} for {database}, not imported: this was a dry run")?;
    } else {
        writeln!(out, "imported {total}{of_each} into {database}")?;
    }
    print(&mut out, &counts, dry_run)?;
    Ok(())
}

/// Prints what happened to the documents, or would happen.
fn print(out: &mut impl Write, counts: &ImportCounts, dry_run: bool) -> anyhow::Result<()> {
    let ImportCounts { created, changed, unchanged, removed, kept, kept_fields } = counts;
    let (created_is, changed_is) = if dry_run { ("to create", "to change") } else { ("created", "changed") };
    writeln!(out, "{created} {created_is}, {changed} {changed_is}, {unchanged} unchanged")?;
    if *kept > 0 {
        let fields = kept_fields.iter().copied().collect::<Vec<_>>().join(", ");
        writeln!(out, "in {kept} of them, what Offramp wrote is kept ({fields}); --overwrite-state replaces it")?;
    }
    if *removed > 0 {
        let removed = count(*removed as u64, "subscription");
        writeln!(out, "{removed} left alone: an administrator removed the purchase")?;
    }
    Ok(())
}

async fn import(
    store: &Store,
    collection: Collection,
    batch: &[Document],
    options: ImportOptions,
) -> anyhow::Result<ImportCounts> {
    store
        .import(collection, batch, options)
        .await
        .context("some documents were not imported; run the import again, which does no harm")
}

/// Prints what of the file is probably not meant.
async fn warn(input: &Input, store: &Store, mut doubts: ImportDoubts) -> anyhow::Result<()> {
    let mut warnings = 0;
    let mut lines = input.lines()?;
    loop {
        let batch: Vec<_> = lines.by_ref().take(IMPORT_DOCUMENTS_MAX).collect::<anyhow::Result<_>>()?;
        if batch.is_empty() {
            break;
        }
        let documents = batch.iter().map(ImportLine::parse).collect::<Result<Vec<_>, _>>()?;
        let found = doubts.of(store, &documents).await?;
        for (line, doubt) in
            batch.iter().zip(found).flat_map(|(line, doubts)| doubts.into_iter().map(move |it| (line, it)))
        {
            warnings += 1;
            if warnings <= WARNINGS_SHOWN_MAX {
                let Doubt { document, field, sentence } = doubt;
                let warning = format!("line {}: {document}: {field}: {sentence}", line.number);
                eprintln!("{}: warning: {}", input.name(), printable(&warning));
            }
        }
    }
    if warnings > WARNINGS_SHOWN_MAX {
        eprintln!("… and {} more warnings; `offramp check --documents` groups them", warnings - WARNINGS_SHOWN_MAX);
    }
    Ok(())
}

/// Validates the whole file before anything is written, and notes its organizations in `doubts`. Returns the number of documents.
async fn check(input: &Input, store: &Store, doubts: &mut ImportDoubts, force: bool) -> anyhow::Result<u64> {
    let (mut total, mut invalid) = (0, 0);
    // The faults that --force accepts.
    let mut faults = 0;
    let mut shown = 0;
    let mut report = |mistake: &str| {
        shown += 1;
        if shown <= MISTAKES_SHOWN_MAX {
            eprintln!("{}: {}", input.name(), printable(mistake));
        }
    };
    let mut references = References::default();
    for line in input.lines()? {
        let line = line?;
        total += 1;
        match ImportLine::parse(&line) {
            Ok(document) => {
                if document.collection == Collection::Organizations {
                    doubts.add_organization(document.id(), &document.document);
                }
                if let Some(first) = references.add(line.number, &document) {
                    invalid += 1;
                    let (collection, id) = (document.collection.as_str(), document.id());
                    report(&format!("line {}: {collection} {id} is already in line {first}", line.number));
                } else if let Some(error) = document.parsed().error() {
                    faults += 1;
                    report(&format!("line {}: {error}", line.number));
                }
            }
            Err(error) => {
                invalid += 1;
                report(&error.to_string());
            }
        }
    }
    for dangling in references.dangling(store).await? {
        faults += 1;
        report(&dangling);
    }
    if shown > MISTAKES_SHOWN_MAX {
        eprintln!("… and {} more", shown - MISTAKES_SHOWN_MAX);
    }
    if invalid > 0 {
        bail!("{invalid} of {total} lines are invalid; nothing was imported");
    }
    if faults > 0 && !force {
        bail!(
            "the worker could not process some documents, because of {}; nothing was imported (--force imports them too)",
            count(faults, "fault")
        );
    }
    Ok(total)
}

/// The documents of a file, and which organizations and accounts they refer to. Ids are kept as hashes: a file may have millions.
#[derive(Default)]
struct References {
    /// The line and the organization of each document.
    documents: HashMap<u64, (usize, u64)>,
    /// The organizations and accounts that documents refer to, with the organization that an account must belong to; each with the
    /// first line that does.
    targets: BTreeMap<(Collection, String, Option<String>), Referrer>,
}

/// The first document that refers to another.
struct Referrer {
    line: usize,
    /// `subscriptions sub-1`
    name: String,
}

impl References {
    /// Adds a document. Returns the line in which it was given before, if it was.
    fn add(&mut self, line: usize, document: &ImportLine) -> Option<usize> {
        let field = |name: &str| document.document.get_str(name).ok();
        let organization = field("organization_id");
        let key = hash(document.collection, document.id());
        let organization_key = organization.map(|id| hash(Collection::Organizations, id)).unwrap_or_default();
        if let Some((first, _)) = self.documents.insert(key, (line, organization_key)) {
            return Some(first);
        }
        let mut refer = |collection: Collection, id: &str, organization: Option<&str>| {
            let key = (collection, id.to_owned(), organization.map(str::to_owned));
            self.targets.entry(key).or_insert_with(|| Referrer {
                line,
                name: format!("{} {}", document.collection.as_str(), document.id()),
            });
        };
        if let Some(id) = organization {
            refer(Collection::Organizations, id, None);
        }
        if let Some(id) = field("account_id").filter(|_| document.collection == Collection::Subscriptions) {
            refer(Collection::Accounts, id, organization);
        }
        None
    }

    /// A sentence for each reference to a document that is neither in the file nor in the database, and to an account of another
    /// organization.
    async fn dangling(self, store: &Store) -> anyhow::Result<Vec<String>> {
        let mut sentences = Vec::new();
        let mut elsewhere: BTreeMap<Collection, Vec<(String, Option<String>, Referrer)>> = BTreeMap::new();
        for ((collection, id, organization), referrer) in self.targets {
            match self.documents.get(&hash(collection, &id)) {
                Some((_, actual)) => {
                    let wanted = organization.map(|id| hash(Collection::Organizations, &id));
                    if wanted.is_some_and(|wanted| wanted != *actual) {
                        sentences.push(referrer.of_other_organization(&id));
                    }
                }
                None => elsewhere.entry(collection).or_default().push((id, organization, referrer)),
            }
        }
        for (collection, targets) in elsewhere {
            for targets in targets.chunks(IMPORT_DOCUMENTS_MAX) {
                let ids: Vec<&str> = targets.iter().map(|(id, ..)| id.as_str()).collect();
                let found = store.organizations_of(collection, &ids).await?;
                for (id, organization, referrer) in targets {
                    match (found.get(id), organization) {
                        (None, _) => sentences.push(referrer.of_nothing(collection, id)),
                        (Some(actual), Some(wanted)) if actual.as_ref() != Some(wanted) => {
                            sentences.push(referrer.of_other_organization(id));
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(sentences)
    }
}

impl Referrer {
    fn of_nothing(&self, collection: Collection, id: &str) -> String {
        let Self { line, name } = self;
        format!(
            "line {line}: {name} refers to {} {id}, which is neither in the file nor in the database",
            collection.as_str()
        )
    }

    fn of_other_organization(&self, id: &str) -> String {
        let Self { line, name } = self;
        format!("line {line}: {name} refers to accounts {id}, which belongs to another organization")
    }
}

fn hash(collection: Collection, id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (collection, id).hash(&mut hasher);
    hasher.finish()
}
