//! The mailbox: a folder of `.eml` files, or Mailpit when the servers run with Docker.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mail_parser::{HeaderValue, MessageParser};
use offramp_testkit::http::get;
use serde_json::Value;

use crate::program::MAIL_FROM;
use crate::story::Mail;

/// A received email.
pub struct Received {
    pub mail: Mail,
    pub language: String,
    pub subject: String,
    /// The URL of a page that shows it.
    pub page: String,
}

/// A mailbox for all recipients.
pub struct Mailbox {
    place: Place,
    /// Emails of earlier runs.
    old: HashSet<String>,
}

enum Place {
    Folder(PathBuf),
    /// The host and port of Mailpit.
    Mailpit(String),
}

impl Mailbox {
    /// Opens the mailbox at `SERVICES_MAIL`, and ignores the emails already in it.
    pub async fn open(address: &str) -> Result<Self> {
        let place = match address.strip_prefix("http://") {
            Some(host) => Place::Mailpit(host.trim_end_matches('/').to_owned()),
            None => Place::Folder(PathBuf::from(address)),
        };
        let old = place.ids().await?.into_iter().collect();
        Ok(Self { place, old })
    }

    /// The demo's emails received since the mailbox was opened.
    pub async fn received(&self) -> Result<Vec<Received>> {
        let mut received = Vec::new();
        for id in self.place.ids().await? {
            if !self.old.contains(&id) {
                received.extend(self.place.read(&id).await?);
            }
        }
        Ok(received)
    }

    /// The URL for looking at all emails.
    pub fn page(&self) -> String {
        match &self.place {
            Place::Folder(folder) => file_url(folder),
            Place::Mailpit(host) => format!("http://{host}"),
        }
    }
}

impl Place {
    async fn ids(&self) -> Result<Vec<String>> {
        match self {
            Self::Folder(folder) => names(folder),
            Self::Mailpit(host) => {
                let list: Value = serde_json::from_str(&get(host, "/api/v1/messages?limit=1000").await?.body)?;
                let messages = list["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
                Ok(messages.iter().filter_map(|message| message["ID"].as_str()).map(str::to_owned).collect())
            }
        }
    }

    /// Reads an email. `None` if it is not from the demo.
    async fn read(&self, id: &str) -> Result<Option<Received>> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(id);
                let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                Ok(parse(&bytes, file_url(&path.with_extension("html"))))
            }
            Self::Mailpit(host) => {
                let source = get(host, &format!("/api/v1/message/{id}/raw")).await?.body;
                Ok(parse(source.as_bytes(), format!("http://{host}/view/{id}")))
            }
        }
    }
}

/// The `.eml` files of a folder, oldest first, because their names start with the time.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    // The mail server creates the folder with the first email.
    let Ok(entries) = fs::read_dir(folder) else { return Ok(names) };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "eml") {
            names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

fn parse(bytes: &[u8], page: String) -> Option<Received> {
    let message = MessageParser::default().parse(bytes)?;
    let first = |address: Option<&mail_parser::Address>| Some(address?.first()?.address()?.to_owned());
    let header = |name: &str| match message.header(name)? {
        HeaderValue::Text(text) => Some(text.to_string()),
        HeaderValue::TextList(list) => list.first().map(ToString::to_string),
        _ => None,
    };
    if first(message.from())? != MAIL_FROM {
        return None;
    }
    Some(Received {
        mail: Mail { template: header("X-Offramp-Template")?, to: first(message.to())? },
        language: header("Content-Language").unwrap_or_default(),
        subject: message.subject().unwrap_or_default().to_owned(),
        page,
    })
}

fn file_url(path: &Path) -> String {
    url::Url::from_file_path(path).map_or_else(|()| path.display().to_string(), Into::into)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Responds like Mailpit.
    async fn answer_as_mailpit(listener: TcpListener) {
        let mail = "From: Club <no-reply@offramp-demo.example>\r\nTo: Zoé <zoe@home.example>\r\nSubject: Bonjour\r\n\
            X-Offramp-Template: card-expiring\r\nContent-Language: fr-CA\r\n\r\n…";
        let spam = mail.replace("offramp-demo", "elsewhere");
        for listed in ["old", "old mine other"].into_iter().cycle() {
            let messages: Vec<Value> = listed.split(' ').map(|id| serde_json::json!({ "ID": id })).collect();
            for _ in listed.split(' ') {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                let body = match str::from_utf8(&request[..length]).unwrap().split(' ').nth(1).unwrap() {
                    "/api/v1/messages?limit=1000" => serde_json::json!({ "messages": messages }).to_string(),
                    "/api/v1/message/mine/raw" => mail.to_owned(),
                    "/api/v1/message/other/raw" => spam.clone(),
                    other => panic!("{other}"),
                };
                stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{body}").as_bytes()).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn only_new_emails_of_the_demo_are_read_from_mailpit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(answer_as_mailpit(listener));
        let mailbox = Mailbox::open(&address).await.unwrap();
        let received = mailbox.received().await.unwrap();
        let [only] = received.as_slice() else { panic!("{} emails", received.len()) };
        assert_eq!(only.mail.to_string(), "card-expiring to zoe@home.example");
        assert_eq!((only.language.as_str(), only.subject.as_str()), ("fr-CA", "Bonjour"));
        assert_eq!(only.page, format!("{address}/view/mine"));
    }
}
