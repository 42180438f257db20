//! SMTP (RFC 5321): a connection that is reused for many emails, and the meaning of the server's replies.
//!
//! An email counts as sent when the server has replied 250 to its content. The dialogue never guesses. Each reply is read
//! before anything is sent that depends on it. After a timeout, an I/O error or an unreadable reply, nothing more is sent
//! on that connection, not even QUIT: a late reply must not be taken for the reply to a later command.

mod blame;
mod connection;
mod deadlines;
mod failure;
mod login;
mod name;
mod reply;
mod server;
mod session;
mod step;
mod tcp;
mod transaction;

pub(crate) use connection::SmtpConnection;
pub use deadlines::Deadlines;
pub use name::SmtpName;
pub use server::SmtpServer;
