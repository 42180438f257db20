//! `offramp preview`: all emails in a browser, for authors and translators of templates.
//!
//! It shows and sends only the samples that templates are checked with. [`gallery`] has the current templates, [`pages`]
//! serves the browser and decides which requests are allowed, and `page.html` is the page.

mod gallery;
mod pages;

use std::io::{Write, stdout};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use offramp::advice;
use offramp::config::{DkimSettings, MailSettings, SenderSettings, TlsSettings};
use offramp::http;

use gallery::Gallery;
use pages::{MailServer, Pages};

use super::error::WrongConfiguration;
use super::signals::stop_signal;

/// Preview all emails in a browser, and send samples to yourself
///
/// Each email is shown on a phone and on a desktop, in light and dark mode, and as text
#[derive(Args, Debug)]
#[command(after_help = "\
Only samples are shown and sent. A saved file in the templates directory takes effect at once. An error in it is reported with file and \
line, and the emails stay as they were before. Ctrl-C stops the preview.")]
pub struct Arguments {
    /// Address and port of the page; port 0 takes any free port
    ///
    /// Everybody who can reach this address can send the samples
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9465")]
    addr: SocketAddr,

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
    let Arguments { addr, sender, mail, tls, dkim } = arguments;
    let signer = dkim.signer(&sender.mail_from).map_err(WrongConfiguration)?.map(Arc::new);
    let stop = stop_signal()?;
    let gallery = Arc::new(Gallery::open(sender.templates).await?);
    let name = mail.name(&sender.mail_from);
    let url =
        mail.url().map_err(|error| WrongConfiguration(advice::append(&error, advice::mail_config_error(&error))))?;
    let mail_server = MailServer { url, name, tls: tls.tls() };
    let pages = Pages::new(Arc::clone(&gallery), sender.mail_from, signer, mail_server, stop.clone());
    let listener = http::bind(addr).await.with_context(|| format!("--addr: cannot bind {addr}"))?;
    let address = listener.local_addr()?;

    announce(&gallery, address)?;
    let following = tokio::spawn(Arc::clone(&gallery).follow());
    let served = axum::serve(listener, pages.router()).with_graceful_shutdown(stop.cancelled_owned()).await;
    following.abort();
    Ok(served?)
}

/// Prints the address of the page, and the errors in the templates.
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
