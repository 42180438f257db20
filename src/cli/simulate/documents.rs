//! The documents that commands are decided on: from a file, or from the database, which is only read.

use std::path::PathBuf;

use anyhow::{Context, bail};
use chrono_tz::Tz;
use clap::Args;
use offramp::jsonl::{ImportLine, ParsedDocument};
use offramp::store::{Collection, DocumentId, DocumentKeys, Store};
use offramp_domain::command::Command;
use offramp_domain::ids::{AccountId, OrganizationId, SubscriptionId, Target};
use offramp_domain::unit_of_work::{LoadedDocument, UnitOfWork};

use crate::cli::input::Input;
use crate::cli::settings::DatabaseArgs;
use crate::cli::terminal::printable;

/// Where the documents are.
#[derive(Args, Debug)]
pub struct Source {
    /// File with organizations, accounts and subscriptions
    ///
    /// One {"collection": "subscriptions", "document": {…}} per line
    #[arg(long, value_name = "FILE", required_unless_present = "from_database", conflicts_with = "from_database")]
    pub documents: Option<PathBuf>,

    /// Read this subscription or account from MongoDB, instead of a file
    ///
    /// With the documents that it refers to. May be given several times
    #[arg(long, value_name = "ID")]
    from_database: Vec<String>,

    #[command(flatten)]
    database: DatabaseArgs,
}

impl Source {
    /// Reads all documents, and the time zone of the first organization. `commands` are those that will be decided.
    pub async fn read(&self, commands: &Input) -> anyhow::Result<(UnitOfWork, Option<Tz>)> {
        match &self.documents {
            Some(file) => from_file(&Input::open(file)?),
            None => self.read_database(commands).await,
        }
    }

    async fn read_database(&self, commands: &Input) -> anyhow::Result<(UnitOfWork, Option<Tz>)> {
        let store = self.database.open().await?;
        let mut keys = DocumentKeys::default();
        for id in &self.from_database {
            let is_known = add_key(&mut keys, &store, id).await?;
            if !is_known {
                let database = self.database.name();
                bail!("there is no subscription or account {} in the database {database}", printable(id));
            }
        }
        // Their accounts whole, because commands about cards need more of an account than those about its subscription.
        let subscriptions = store.load(&keys).await?;
        let accounts =
            keys.subscriptions.iter().filter_map(|id| Some(subscriptions.subscription(id)?.account_id.clone()));
        keys.accounts.extend(accounts);
        require_targets(commands, &keys)?;
        let unit_of_work = store.load(&keys).await?;
        let first = self.from_database.first().and_then(|id| organization_of(&unit_of_work, id));
        let timezone = first.and_then(|id| unit_of_work.organization(id)?.timezone.clone().ok());
        Ok((unit_of_work, timezone))
    }
}

/// Adds the documents with this id. Returns whether there are any.
async fn add_key(keys: &mut DocumentKeys, store: &Store, id: &str) -> anyhow::Result<bool> {
    let mut is_known = false;
    if let Ok(subscription) = SubscriptionId::try_from(id)
        && !store.organizations_of(Collection::Subscriptions, &[id]).await?.is_empty()
    {
        is_known = true;
        keys.subscriptions.insert(subscription);
    }
    if let Ok(account) = AccountId::try_from(id)
        && !store.organizations_of(Collection::Accounts, &[id]).await?.is_empty()
    {
        is_known = true;
        keys.accounts.insert(account);
    }
    Ok(is_known)
}

/// Requires that each command is about a document that is read: otherwise it would be decided as if there were none.
fn require_targets(commands: &Input, keys: &DocumentKeys) -> anyhow::Result<()> {
    for line in commands.lines()? {
        let line = line?;
        // Whatever is no command is an outcome.
        let Ok(command) = Command::parse(&line.bytes) else { continue };
        let is_read = match command.target() {
            Target::Subscription(id) => keys.subscriptions.contains(id),
            Target::Account(id) => keys.accounts.contains(id),
            Target::Organization(_) => true,
        };
        if !is_read {
            let (name, number) = (commands.name(), line.number);
            let target = printable(&DocumentId::from(command.target()).to_string());
            bail!("{name}: line {number} is about {target}, which --from-database does not name");
        }
    }
    Ok(())
}

/// The organization of the subscription or account with this id.
fn organization_of<'a>(unit_of_work: &'a UnitOfWork, id: &str) -> Option<&'a OrganizationId> {
    let subscription = SubscriptionId::try_from(id).ok();
    if let Some(subscription) = subscription.and_then(|id| unit_of_work.subscription(&id)) {
        return Some(&subscription.organization_id);
    }
    let account = AccountId::try_from(id).ok()?;
    unit_of_work.tracked_account(&account).map(|account| &account.after.organization_id)
}

fn from_file(input: &Input) -> anyhow::Result<(UnitOfWork, Option<Tz>)> {
    let (mut unit_of_work, mut timezone) = (UnitOfWork::default(), None);
    for line in input.lines()? {
        let line = line?;
        let document = ImportLine::parse(&line).with_context(|| input.name().to_owned())?;
        let found = document.parsed();
        if let Some(error) = found.error() {
            eprintln!("offramp: {}: line {}: {}", input.name(), line.number, printable(&error));
        }
        if let (None, ParsedDocument::Organization(LoadedDocument::Read(organization))) = (timezone, &found) {
            timezone = organization.timezone.clone().ok();
        }
        document.add_to(&mut unit_of_work);
    }
    Ok((unit_of_work, timezone))
}
