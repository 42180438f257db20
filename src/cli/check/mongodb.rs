//! MongoDB: connection, version, kind of server, rights, indexes.

use offramp::advice;
use offramp::config::DatabaseSettings;
use offramp::store::indexes::Index;
use offramp::store::rights::{Right, TO_RECORD_REJECTED_COMMANDS, UserRights};
use offramp::store::server::ServerFacts;
use offramp::store::{Store, StoreError};
use offramp::tls::Tls;

use super::finding::Finding;

pub async fn check(settings: DatabaseSettings, tls: &Tls) -> Finding {
    let url = settings.mongodb_url;
    let finding = Finding::new("MongoDB");
    let failed = |finding: Finding, error: &StoreError| {
        let advice = advice::tls(&error.to_string());
        finding.fact(url.to_string()).problem(advice::append(error, advice))
    };
    let store = match Store::open(url.connection_string(), tls).await {
        Ok(store) => store,
        Err(error) => return failed(finding, &error),
    };
    let looking = async { Ok::<_, StoreError>((store.server_facts().await?, store.user_rights().await?)) };
    let (facts, rights) = match looking.await {
        Ok(found) => found,
        Err(error) => return failed(finding, &error),
    };
    let finding = of_rights(of_server(finding, &url.to_string(), &facts), &rights);
    match store.missing_indexes().await {
        Ok(missing) => of_indexes(finding, &missing, &rights),
        // A missing right, which is reported above.
        Err(StoreError::Denied(_)) => finding,
        Err(error) => finding.problem(error.to_string()),
    }
}

fn of_server(finding: Finding, url: &str, facts: &ServerFacts) -> Finding {
    let version = &facts.version;
    match (&facts.replica_set, facts.is_router) {
        (Some(name), _) => finding.fact(format!("{url}, version {version}, replica set {name}")),
        (None, true) => finding
            .fact(format!("{url}, version {version}, sharded cluster"))
            .warning("Offramp is not tested with sharded clusters"),
        (None, false) => finding
            .fact(format!("{url}, version {version}, a standalone server: what is confirmed is on one machine only")),
    }
}

fn of_rights(finding: Finding, rights: &UserRights) -> Finding {
    let missing: Vec<String> =
        rights.missing().iter().map(|right| format!("`{}` on `{}`", right.action, right.collection)).collect();
    let finding = if rights.include(TO_RECORD_REJECTED_COMMANDS) {
        finding
    } else {
        let Right { action, collection } = TO_RECORD_REJECTED_COMMANDS;
        finding.fact(format!(
            "without the right `{action}` on `{collection}`, rejected commands are not recorded for `offramp show` and \
             `offramp find`"
        ))
    };
    match &rights.user {
        None => finding.fact("no user: this server lets anybody do anything"),
        Some(user) if missing.is_empty() => finding.fact(format!("user {user} has the rights that a worker needs")),
        Some(user) => {
            let sentence = format!("the user {user} lacks rights: {}", missing.join(", "));
            finding.problem(advice::append(sentence, Some(advice::RIGHTS)))
        }
    }
}

fn of_indexes(finding: Finding, missing: &[Index], rights: &UserRights) -> Finding {
    let (for_support, missing): (Vec<_>, Vec<_>) = missing.iter().partition(|index| index.is_for_support);
    let finding = of_support_indexes(finding, &for_support, rights);
    if missing.is_empty() {
        return finding;
    }
    let names = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if missing.iter().all(|index| rights.may_create_index(index.collection)) {
        finding.fact(format!("indexes missing: {names} (`offramp init` or `offramp run` creates them)"))
    } else {
        finding.problem(format!(
            "indexes missing: {names}; this user may not create them: run `offramp init` as a user who may (`createIndex`)"
        ))
    }
}

/// A worker works without them.
fn of_support_indexes(finding: Finding, missing: &[&Index], rights: &UserRights) -> Finding {
    if missing.is_empty() {
        return finding;
    }
    let names = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if missing.iter().all(|index| rights.may_create_index(index.collection)) {
        finding
            .fact(format!("indexes of `offramp find` missing: {names} (`offramp init` or `offramp run` creates them)"))
    } else {
        finding.fact(format!(
            "indexes of `offramp find` missing: {names}; a worker works without them. This user may not create them: run \
             `offramp init` as a user who may (`createIndex`)"
        ))
    }
}
