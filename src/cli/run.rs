//! `offramp run`: the worker.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use offramp::advice;
use offramp::amqp::{Broker, Topology};
use offramp::config::Settings;
use offramp::traces::TraceExport;
use offramp::worker::composer::Composer;
use offramp::worker::{WorkerParts, run as run_worker};
use offramp::{build, http, metrics};
use offramp_mail::{Deadlines, Transport};

use super::error::WrongConfiguration;
use super::settings::load_templates;
use super::signals::stop_signal;

/// The part of the shutdown time that is reserved for the last spans, where there are traces: a quarter, at most 3 s.
const FLUSH_SHUTDOWN_PART: u32 = 4;
const FLUSH_MAX: Duration = Duration::from_secs(3);

/// Run the worker until SIGTERM or Ctrl-C
///
/// A second signal ends it at once. Nothing is lost in either case
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    settings: Settings,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Settings { broker, database, mail, tls, sender, dkim, mut worker, http: health, traces } = arguments.settings;
    let tls = tls.tls();
    let templates = load_templates(&sender)?;
    let tls_config = tls.client_config().map_err(|error| WrongConfiguration(format!("TLS: {error}")))?;
    let mail_server = mail.url().map(|url| url.to_string()).unwrap_or_default();
    let transport = mail
        .url()
        .and_then(|url| Transport::new(&url, mail.name(&sender.mail_from), tls_config, Deadlines::default()))
        .and_then(|transport| transport.prepare().map(|()| transport))
        .map_err(|error| WrongConfiguration(advice::append(&error, advice::mail_config_error(&error))))?;
    let signer = dkim.signer(&sender.mail_from).map_err(WrongConfiguration)?.map(Arc::new);
    let traces = traces.options(&tls).map(TraceExport::start).transpose().map_err(WrongConfiguration)?;
    let flush_max = FLUSH_MAX.min(worker.shutdown / FLUSH_SHUTDOWN_PART);
    if traces.is_some() {
        worker.shutdown -= flush_max;
    }
    let parts = WorkerParts {
        broker: Broker::with_tls(broker.amqp_url, "offramp", tls.clone()),
        topology: Topology::new(broker.prefix),
        mongodb_url: database.mongodb_url,
        tls,
        composer: Composer { templates, sender: sender.mail_from, signer },
        transport,
        mail_connections: mail.mail_connections,
        mail_per_second: mail.mail_per_second,
        tuning: worker,
    };
    let listener = http::bind(health.http_addr).await.map_err(|error| {
        let cannot = format!("OFFRAMP_HTTP_ADDR: cannot listen on {}: {error}", health.http_addr);
        anyhow!(advice::append(cannot, advice::listen_error(&error)))
    })?;
    let metrics = metrics::install()?;
    tracing::info!(
        version = build::VERSION,
        revision = build::REVISION,
        rabbitmq = %parts.broker.urls(),
        prefix = parts.topology.command_exchange(),
        mongodb = %parts.mongodb_url,
        database = parts.mongodb_url.database(),
        mail_server,
        http = %listener.local_addr()?,
        "starting"
    );
    let ended = run_worker(parts, listener, metrics, stop_signal()?).await;
    if let Some(traces) = traces {
        traces.flush(flush_max).await;
    }
    Ok(ended?)
}
