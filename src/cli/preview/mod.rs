//! `offramp preview`: all emails in a browser, for authors and translators of templates.
//!
//! It shows and sends only the samples that templates are checked with. [`gallery`] has what is shown now: the templates
//! ([`newest_valid`]) and the organization ([`organization_file`]), loaded again when [`file_watch`] finds a change. [`routes`]
//! answers the browser, whose requests pass the [`request_guard`]; [`page`] is the page. [`shown_email`] renders one sample, and
//! [`listing`] lists them all.

mod color_scheme;
mod file_watch;
mod gallery;
mod inbox_line;
mod listing;
mod look;
mod newest_valid;
mod organization_file;
mod page;
mod problem;
mod request_guard;
mod routes;
mod sending;
mod shown_email;

use std::io::{Write, stdout};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use offramp::advice;
use offramp::config::{DkimSettings, MailSettings, SenderSettings, TlsSettings};
use offramp::http;

use gallery::Gallery;
use routes::Preview;
use sending::MailServer;

use super::error::WrongConfiguration;
use super::signals::stop_signal;

/// Preview all emails in a browser, and send samples to yourself
///
/// Each email is shown on a phone and on a desktop, in light and dark mode, and as text
#[derive(Args, Debug)]
#[command(after_help = "\
Only samples are shown and sent. A saved file takes effect at once. A mistake in it is reported with file and line, and the emails that \
it spoils stay as they were before; all others are shown as they are now. Ctrl-C stops the preview.

Examples:
  offramp preview
  offramp preview --templates my-templates --organization my-organization.json")]
pub struct Arguments {
    /// Address and port of the page; port 0 takes any free port
    ///
    /// Everybody who can reach this address can send the samples
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9465")]
    addr: SocketAddr,

    /// File with your organization's document; all samples show it
    ///
    /// One JSON object as in MongoDB's `organizations`: name, locale, contact, brand and links
    #[arg(long, value_name = "FILE")]
    organization: Option<PathBuf>,

    #[command(flatten)]
    sender: SenderSettings,

    #[command(flatten)]
    mail: MailSettings,

    #[command(flatten)]
    tls: TlsSettings,
    #[command(flatten)]
    dkim: DkimSettings,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { addr, organization, sender, mail, tls, dkim } = arguments;
    let signer = dkim.signer(&sender.mail_from).map_err(WrongConfiguration)?.map(Arc::new);
    let stop = stop_signal()?;
    let gallery = Arc::new(Gallery::open(sender.templates, organization).await?);
    let name = mail.name(&sender.mail_from);
    let url =
        mail.url().map_err(|error| WrongConfiguration(advice::append(&error, advice::mail_config_error(&error))))?;
    let mail_server = MailServer { url, name, tls: tls.tls() };
    let preview =
        Preview { gallery: Arc::clone(&gallery), sender: sender.mail_from, signer, mail_server, stop: stop.clone() };
    let listener = http::bind(addr).await.with_context(|| format!("--addr: cannot bind {addr}"))?;
    let address = listener.local_addr()?;

    announce(&gallery, address)?;
    let following = tokio::spawn(Arc::clone(&gallery).follow());
    let served = axum::serve(listener, preview.router()).with_graceful_shutdown(stop.cancelled_owned()).await;
    following.abort();
    Ok(served?)
}

/// Prints the address of the page, and the errors in the files.
fn announce(gallery: &Gallery, address: SocketAddr) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    if address.ip().is_unspecified() {
        writeln!(
            out,
            "The emails are at http://localhost:{}/, and at every other address of this machine",
            address.port()
        )?;
    } else {
        writeln!(out, "The emails are at http://{address}/")?;
    }
    for problem in &gallery.now().problems {
        writeln!(out, "{problem}")?;
    }
    writeln!(out, "Ctrl-C stops the preview")?;
    Ok(())
}
