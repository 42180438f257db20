//! `offramp preview`: every mail there is, in a browser, for those who write or translate them.
//!
//! The mails are the samples that templates are tried out on. Nothing else can be seen here, and nothing else can be
//! sent. [`gallery`] has the templates as they are now; [`pages`] answers the browser, and says who may ask;
//! `page.html` is what the browser shows.

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
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use gallery::Gallery;
use pages::{MailServer, Pages};

use super::WrongConfiguration;

/// Look at every mail in a browser while you write it: on a phone, on a desk, in the dark, as text; and send it to
/// yourself
#[derive(Args, Debug)]
#[command(after_help = "\
Only made-up mails are shown and sent. A file that is saved in the templates directory is shown at once; a mistake in it is told by \
file and line, and the mails stay as they were before it. Ctrl-C ends it.")]
pub struct Arguments {
    /// Where the page is; whoever reaches this address can send the made-up mails. Port 0 takes any free one
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
    let listener = http::bind(addr).await.with_context(|| format!("--addr: {addr} cannot be had"))?;
    let address = listener.local_addr()?;

    tell(&gallery, address)?;
    let following = tokio::spawn(Arc::clone(&gallery).follow());
    let served = axum::serve(listener, pages.router()).with_graceful_shutdown(stop.cancelled_owned()).await;
    following.abort();
    Ok(served?)
}

/// Says where the page is, and what is wrong already.
fn tell(gallery: &Gallery, address: SocketAddr) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    if address.ip().is_unspecified() {
        writeln!(
            out,
            "The mails are at http://localhost:{}/, and at every other address of this machine",
            address.port()
        )?;
    } else {
        writeln!(out, "The mails are at http://{address}/")?;
    }
    for problem in &gallery.now().problems {
        writeln!(out, "{problem}")?;
    }
    writeln!(out, "Ctrl-C ends this")?;
    Ok(())
}

/// Cancelled with the first SIGTERM or Ctrl-C.
fn stop_signal() -> anyhow::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        token.cancel();
    });
    Ok(stop)
}
