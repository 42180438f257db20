//! The person who acts: an administrator of the organization, or the client.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::ids::{AccountId, AdminId, PersonName};
use crate::strict_json::{name, object};

/// Who acts: an administrator of the organization, or the client from their own account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Actor {
    /// Works for the organization.
    Admin {
        /// Their id in the upstream system.
        id: AdminId,
        /// Their name.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<PersonName>,
    },
    /// Acts from their own account.
    Client {
        /// The account they act from.
        account_id: AccountId,
        /// Their name.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<PersonName>,
    },
}

impl Actor {
    #[must_use]
    pub fn name(&self) -> Option<&PersonName> {
        match self {
            Self::Admin { name, .. } | Self::Client { name, .. } => name.as_ref(),
        }
    }
}

/// `#[serde(deserialize_with = "actor")]`: an [`Actor`] of a command, without unknown fields.
pub(crate) fn actor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Actor, D::Error> {
    Actor::try_from(object::<_, ActorFields>(deserializer)?).map_err(de::Error::custom)
}

/// The wire form of [`Actor`]: flat, so that an error can name the field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActorFields {
    #[serde(deserialize_with = "name")]
    role: Role,
    id: Option<AdminId>,
    account_id: Option<AccountId>,
    name: Option<PersonName>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    Admin,
    Client,
}

impl TryFrom<ActorFields> for Actor {
    type Error = &'static str;

    fn try_from(fields: ActorFields) -> Result<Self, Self::Error> {
        match (fields.role, fields.id, fields.account_id) {
            (Role::Admin, Some(id), None) => Ok(Self::Admin { id, name: fields.name }),
            (Role::Client, None, Some(account_id)) => Ok(Self::Client { account_id, name: fields.name }),
            (Role::Admin, None, _) => Err("missing field `id` (an admin has an `id`)"),
            (Role::Client, _, None) => Err("missing field `account_id` (a client has an `account_id`)"),
            (Role::Admin, _, Some(_)) => Err("unknown field `account_id` (an admin has an `id` and a `name`)"),
            (Role::Client, Some(_), _) => Err("unknown field `id` (a client has an `account_id` and a `name`)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{admin, check_invalid, client, envelope};

    /// Documents keep actors as commands bring them.
    #[test]
    fn actors_are_written_as_they_are_read() {
        for actor in [admin(), client()] {
            let read: Actor = serde_json::from_value(actor.clone()).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), actor);
        }
    }

    #[test]
    fn invalid_fields_are_named() {
        #[track_caller]
        fn with(actor: Value, expected: &str) {
            check_invalid(
                envelope("subscription.cancellation", json!({ "actor": admin(), "via": "purchases" })),
                "/data/actor",
                actor,
                expected,
            );
        }
        with(json!({}), "data.actor: missing field `role`");
        with(
            json!({ "role": "owner", "id": "1" }),
            "data.actor.role: unknown variant `owner`, expected `admin` or `client`",
        );
        with(json!({ "role": "admin" }), "data.actor: missing field `id` (an admin has an `id`)");
        with(json!({ "role": "admin", "id": "" }), "data.actor.id: must be 1 to 128 characters long, is 0");
        with(
            json!({ "role": "admin", "id": "1", "account_id": "2" }),
            "data.actor: unknown field `account_id` (an admin has an `id` and a `name`)",
        );
        with(
            json!({ "role": "client", "id": "1" }),
            "data.actor: missing field `account_id` (a client has an `account_id`)",
        );
        with(
            json!({ "role": "client", "id": "1", "account_id": "2" }),
            "data.actor: unknown field `id` (a client has an `account_id` and a `name`)",
        );
        with(
            json!({ "role": "admin", "id": "1", "email": "luc@example.org" }),
            "data.actor.email: unknown field `email`, expected one of `role`, `id`, `account_id`, `name`",
        );
        with(
            json!({ "role": "admin", "id": "1", "name": "x".repeat(1001) }),
            "data.actor.name: must be 0 to 1000 characters long, is 1001",
        );
    }
}
