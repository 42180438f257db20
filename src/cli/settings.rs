//! What several subcommands make from their settings: connections and templates.

use clap::Args;
use offramp::amqp::{Broker, Topology};
use offramp::config::{BrokerSettings, DatabaseSettings, SenderSettings, TlsSettings};
use offramp::store::{Store, StoreError};
use offramp_mail::Templates;

use super::error::WrongConfiguration;

/// The settings of a subcommand that connects to RabbitMQ alone.
#[derive(Args, Debug)]
pub struct BrokerArgs {
    #[command(flatten)]
    broker: BrokerSettings,
    #[command(flatten)]
    tls: TlsSettings,
}

impl BrokerArgs {
    /// The broker, not connected yet. RabbitMQ shows `connection_name`.
    pub fn broker(&self, connection_name: &str) -> Broker {
        Broker::with_tls(self.broker.amqp_url.clone(), connection_name, self.tls.tls())
    }

    pub fn topology(&self) -> Topology {
        Topology::new(self.broker.prefix.clone())
    }
}

/// The settings of a subcommand that connects to MongoDB alone.
#[derive(Args, Debug)]
pub struct DatabaseArgs {
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    tls: TlsSettings,
}

impl DatabaseArgs {
    /// Connects to the database.
    pub async fn open(&self) -> Result<Store, StoreError> {
        Store::open(self.database.mongodb_url.connection_string(), &self.tls.tls()).await
    }

    /// The name of the database.
    pub fn name(&self) -> &str {
        self.database.mongodb_url.database()
    }
}

/// Loads the templates. What is probably not meant is logged.
pub fn load_templates(settings: &SenderSettings) -> Result<Templates, WrongConfiguration> {
    let templates = Templates::load(settings.templates.as_deref()).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        WrongConfiguration(format!("the templates contain errors:\n{}", lines.join("\n")))
    })?;
    for warning in templates.warnings() {
        tracing::warn!(file = %warning.file, "template: {}", warning.message);
    }
    Ok(templates)
}
