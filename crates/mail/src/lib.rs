//! What people read, and how it reaches them (contract §5).
//!
//! A notification goes through three steps: [`templates`] puts it in words, in the reader's language, with dates and
//! money as [`locale`] writes them; [`message`] makes a mail of the words, and [`dkim`] signs it; [`smtp`] sends it. Only the
//! last does I/O, and none of them decides anything: who gets which mail with which facts is fixed before, in
//! [`domain::notification`](offramp_domain::notification).

pub mod dkim;
pub mod locale;
pub mod message;
mod mime;
pub mod samples;
pub mod smtp;
pub mod templates;
mod view;

pub use dkim::{DkimKey, DkimSigner};
pub use message::{AddressError, ComposedEmail, Origin, Sender, compose};
pub use smtp::{
    Deadlines, LoginProblem, MailConfigError, MailConnection, MailUrl, SendError, SenderProblem, SmtpName, Transport,
};
pub use templates::{RenderError, RenderedEmail, TemplateProblem, Templates};
