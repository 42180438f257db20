//! The rights of the database user: which a worker needs, and which of them are missing.

use std::fmt;

use bson::{Bson, Document, doc};

use super::client::Store;
use super::collection::{Collection, REJECTED_COMMANDS};
use super::error::StoreError;

/// A privilege: an action on a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// MongoDB's name of the action.
    pub action: &'static str,
    /// The name of the collection.
    pub collection: &'static str,
}

const fn right(action: &'static str, collection: Collection) -> Right {
    Right { action, collection: collection.as_str() }
}

/// Everything that a worker does: it reads and updates documents, and deletes tombstones.
pub const OF_WORKER: [Right; 7] = [
    right("find", Collection::Organizations),
    right("update", Collection::Organizations),
    right("find", Collection::Accounts),
    right("update", Collection::Accounts),
    right("find", Collection::Subscriptions),
    right("update", Collection::Subscriptions),
    right("remove", Collection::Subscriptions),
];

/// With it, a worker also records the commands that it rejects. Without it, it works all the same.
pub const TO_RECORD_REJECTED_COMMANDS: Right = Right { action: "insert", collection: REJECTED_COMMANDS };

/// `update on accounts`
impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.action, self.collection)
    }
}

/// What the server says about the user of this connection.
#[derive(Clone, Debug, PartialEq)]
pub struct UserRights {
    /// `worker@admin`; `None` if the server knows no user: it enforces no rights, or requires a login.
    pub user: Option<String>,
    database: String,
    privileges: Vec<Document>,
}

impl UserRights {
    /// Whether the user has a right. Without a user, unknown: `true`.
    #[must_use]
    pub fn include(&self, right: Right) -> bool {
        self.user.is_none() || self.privileges.iter().any(|privilege| self.grants(privilege, right))
    }

    /// The rights that a worker needs and this user lacks.
    #[must_use]
    pub fn missing(&self) -> Vec<Right> {
        OF_WORKER.into_iter().filter(|right| !self.include(*right)).collect()
    }

    /// Whether the user may create an index of a collection.
    #[must_use]
    pub fn may_create_index(&self, collection: &'static str) -> bool {
        self.include(Right { action: "createIndex", collection })
    }

    fn grants(&self, privilege: &Document, right: Right) -> bool {
        let Ok(resource) = privilege.get_document("resource") else { return false };
        let covers = resource.get_bool("anyResource").unwrap_or(false)
            // Empty text means any.
            || [("db", self.database.as_str()), ("collection", right.collection)].iter().all(|(field, wanted)| {
                resource.get_str(field).is_ok_and(|name| name.is_empty() || name == *wanted)
            });
        let actions = privilege.get_array("actions").map(Vec::as_slice).unwrap_or_default();
        covers && actions.iter().filter_map(Bson::as_str).any(|action| action == right.action || action == "anyAction")
    }
}

impl Store {
    /// The rights of the user of this connection.
    ///
    /// # Errors
    /// When the server does not answer, or rejects the login; [`StoreError::Denied`] when it requires a login and there is none.
    pub async fn user_rights(&self) -> Result<UserRights, StoreError> {
        let status = self.command(doc! { "connectionStatus": 1, "showPrivileges": true }).await?;
        let auth = status.get_document("authInfo").cloned().unwrap_or_default();
        let list = |name: &str| auth.get_array(name).map(Vec::as_slice).unwrap_or_default();
        let user = list("authenticatedUsers").first().and_then(Bson::as_document).map(|user| {
            let field = |name| user.get_str(name).unwrap_or_default();
            format!("{}@{}", field("user"), field("db"))
        });
        if user.is_none() {
            // Fails if the server requires a login.
            self.find(Collection::Organizations, doc! { "_id": "" }, doc! { "_id": 1 }, Some(1)).await?;
        }
        let privileges = list("authenticatedUserPrivileges").iter().filter_map(Bson::as_document).cloned().collect();
        Ok(UserRights { user, database: self.database.name().to_owned(), privileges })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(resource: Document, actions: &[&str], expected: bool) {
        let privileges = vec![doc! { "resource": resource, "actions": actions }];
        let rights = UserRights { user: Some("worker@admin".to_owned()), database: "shop".to_owned(), privileges };
        assert_eq!(rights.include(right("update", Collection::Accounts)), expected);
    }

    #[test]
    fn resources_may_name_any_database_or_collection() {
        for (db, collection, expected) in [
            ("shop", "accounts", true),
            ("shop", "", true),
            ("", "accounts", true),
            ("", "", true),
            ("shop", "subscriptions", false),
            ("other", "accounts", false),
            ("other", "", false),
        ] {
            check(doc! { "db": db, "collection": collection }, &["find", "update"], expected);
        }
        check(doc! { "anyResource": true }, &["anyAction"], true);
        check(doc! { "cluster": true }, &["update"], false);
        check(doc! { "db": "shop", "collection": "accounts" }, &["find", "insert"], false);
    }

    /// Held here against the list, because nobody would notice a missing right before it is needed.
    #[test]
    fn the_documentation_grants_exactly_these_rights() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operate/rights.md")).unwrap();
        for collection in Collection::ALL {
            let actions: Vec<String> = OF_WORKER
                .iter()
                .filter(|right| right.collection == collection.as_str())
                .map(|right| format!("\"{}\"", right.action))
                .collect();
            let resource = format!("{{ db: \"offramp\", collection: \"{}\" }}", collection.as_str());
            let line = format!("{{ resource: {resource}, actions: [{}] }},", actions.join(", "));
            assert!(page.contains(&line), "{line}");
        }
        let Right { action, collection } = TO_RECORD_REJECTED_COMMANDS;
        let line =
            format!("{{ resource: {{ db: \"offramp\", collection: \"{collection}\" }}, actions: [\"{action}\"] }},");
        assert!(page.contains(&line), "{line}");
    }

    #[test]
    fn without_a_user_nothing_is_known_to_be_missing() {
        let rights = UserRights { user: None, database: "shop".to_owned(), privileges: Vec::new() };
        assert!(rights.missing().is_empty());
        let nothing = UserRights { user: Some("worker@admin".to_owned()), ..rights };
        assert_eq!(nothing.missing(), OF_WORKER);
    }
}
