//! `offramp run`: the worker.

use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use offramp::advice;
use offramp::amqp::{Broker, Topology};
use offramp::config::Settings;
use offramp::worker::composer::Composer;
use offramp::worker::{WorkerParts, run as run_worker};
use offramp::{http, metrics};
use offramp_mail::{Deadlines, Transport};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{WrongConfiguration, load_templates};

/// Consume commands until SIGTERM or Ctrl-C; a second signal ends at once, and loses nothing either
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    settings: Settings,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Settings { broker, database, mail, tls, sender, dkim, worker, http: health } = arguments.settings;
    let tls = tls.tls();
    let templates = load_templates(&sender)?;
    let tls_config = tls.client_config().map_err(|error| WrongConfiguration(format!("TLS: {error}")))?;
    let transport = mail
        .url()
        .and_then(|url| Transport::new(&url, mail.name(&sender.mail_from), tls_config, Deadlines::default()))
        .map_err(|error| WrongConfiguration(advice::append(&error, advice::mail_config_error(&error))))?;
    let signer = dkim.signer(&sender.mail_from).map_err(WrongConfiguration)?.map(Arc::new);
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
    let listener = http::bind(health.http_addr)
        .await
        .with_context(|| format!("OFFRAMP_HTTP_ADDR: {} cannot be had", health.http_addr))?;
    let metrics = metrics::install()?;
    run_worker(parts, listener, metrics, stop_signal()?).await?;
    Ok(())
}

/// Cancelled with the first SIGTERM, SIGINT or SIGHUP. The second one ends the process: whatever it has in hand is not acked,
/// so the broker delivers it again. SIGHUP, which a closed terminal sends, would otherwise end it at once.
fn stop_signal() -> anyhow::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) };
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        for signals in 1.. {
            let hung_up = async {
                match &mut hangup {
                    Some(hangup) => drop(hangup.recv().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} () = hung_up => {} }
            if signals > 1 {
                tracing::warn!("stopped at once; what was in hand will be done again");
                std::process::exit(1);
            }
            token.cancel();
        }
    });
    Ok(stop)
}

/// Whether whoever started this process wants it to outlive its terminal, as `nohup` does. Elsewhere than on Linux that is not
/// known.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // SIGHUP is the first signal.
    mask.is_some_and(|mask| mask & 1 == 1)
}
