//! `offramp console`: a web page for support and operators.
//!
//! HTML is rendered here, on the server; the script only refreshes numbers that change. [`routes`] has every path, and every request passes
//! the [`gate`], which asks [`access`] who may come in. [`page`] is what all pages share, [`html`] how values are written, [`form`] what forms share, [`changes`] runs
//! each change and records who made it, and [`watch`] reads what changes by itself. Every other module is a page or a group of pages:
//! [`overview`], [`requests`], [`emails`], [`dead_letters`], [`records`] (subscriptions and accounts), [`search`] and [`login`].

mod access;
mod app;
mod change_page;
mod changes;
mod dead_letters;
mod emails;
mod failure;
mod form;
mod gate;
mod html;
mod login;
mod overview;
mod page;
mod plot;
mod records;
mod requests;
mod routes;
mod search;
mod watch;
mod workers;

use std::io::{Write, stdout};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use offramp::advice;
use offramp::amqp::{Broker, Topology};
use offramp::config::{BrokerSettings, ConsoleSettings, DatabaseSettings, SenderSettings, TlsSettings};
use offramp::http;
use offramp::store::Store;
use offramp::worker::composer::Composer;

use access::Access;
use app::App;

use super::error::WrongConfiguration;
use super::settings::load_templates;
use super::signals::stop_signal;

/// Open a web page for support staff and operators
///
/// It shows workers and queues, undecided requests, timelines, emails and dead letters. It is read-only unless --allow-changes is given
#[derive(Args, Debug)]
#[command(after_help = "\
On this machine alone, nobody logs in. To let others reach it, set OFFRAMP_CONSOLE_TOKEN (visitors log in with it and give their name) or \
OFFRAMP_CONSOLE_IDENTITY_HEADER (a reverse proxy logs them in), and put it behind HTTPS. Every change is logged with who made it. \
Ctrl-C stops the console; a change that is being made then ends where it is, and nothing is lost.

Examples:
  offramp console
  offramp console --allow-changes
  OFFRAMP_CONSOLE_TOKEN_FILE=/run/secrets/console offramp console --console-addr 0.0.0.0:9466 --console-hosts offramp.example.com")]
pub struct Arguments {
    /// Let visitors retry and drop emails and dead letters, and decide requests
    #[arg(long)]
    allow_changes: bool,

    #[command(flatten)]
    console: ConsoleSettings,

    #[command(flatten)]
    broker: BrokerSettings,

    #[command(flatten)]
    database: DatabaseSettings,

    #[command(flatten)]
    sender: SenderSettings,

    #[command(flatten)]
    tls: TlsSettings,
}

/// The largest number of browsers' connections at a time. Further ones wait.
const CONNECTIONS_MAX: usize = 512;

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { allow_changes, console, broker, database, sender, tls } = arguments;
    let access = Access::new(&console).map_err(WrongConfiguration)?;
    let templates = load_templates(&sender)?;
    let tls = tls.tls();
    let stop = stop_signal()?;
    let address = console.console_addr;
    let listener = http::bind(address).await.map_err(|error| {
        let cannot = format!("OFFRAMP_CONSOLE_ADDR: cannot listen on {address}: {error}");
        anyhow::anyhow!(advice::append(cannot, advice::listen_error(&error)))
    })?;
    let store = Store::open(database.mongodb_url.connection_string(), &tls).await?;
    let broker_and_topology = (Broker::with_tls(broker.amqp_url, "offramp console", tls), Topology::new(broker.prefix));
    let composer = Composer { templates, sender: sender.mail_from, signer: None };
    let app = Arc::new(App::new(allow_changes, access, store, broker_and_topology, composer));
    announce(listener.local_addr().context("the console's address")?, allow_changes)?;
    let servers = (app.broker.clone(), app.topology.clone());
    let board = Arc::clone(&app.dead_letters);
    let watching = watch::keep_watching(
        Arc::clone(&app.watch),
        app.store.clone(),
        servers,
        console.console_workers,
        move || board.is_held(),
        stop.clone(),
    );
    let watching = tokio::spawn(watching);
    http::serve(listener, routes::router(Arc::clone(&app)), CONNECTIONS_MAX, stop).await;
    app.changes.interrupt();
    watching.abort();
    Ok(())
}

fn announce(address: SocketAddr, allow_changes: bool) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    if address.ip().is_unspecified() {
        writeln!(
            out,
            "The console is at http://localhost:{}/, and at every other address of this machine",
            address.port()
        )?;
    } else {
        writeln!(out, "The console is at http://{address}/")?;
    }
    if !allow_changes {
        writeln!(out, "It is read-only; --allow-changes lets visitors change something")?;
    }
    writeln!(out, "Ctrl-C stops the console")?;
    Ok(())
}
