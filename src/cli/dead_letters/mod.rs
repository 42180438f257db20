//! `offramp dead-letters`: lists messages that could not be processed, and replays or drops them.

mod drop;
mod fields;
mod groups;
mod list;
mod replay;
mod select;
mod session;
mod show;

use clap::{Args, Subcommand};

pub use fields::short_queue;

/// List, show, replay or drop messages that could not be processed
#[derive(Args, Debug)]
#[command(after_help = "\
A dead letter stays in its queue until its copy is confirmed in its work queue (replay), or until you confirm that it is dropped \
(drop). To interrupt or kill any of these commands loses nothing. At worst, a dead letter that is being replayed at that moment is \
in both queues afterwards. That does no harm: `(source, id)` identifies a command, and a document remembers the newest 200.

Each of these commands holds all dead letters while it runs. A second one waits up to 10 seconds for the first, then stops without \
having changed anything. Dead letters that arrive meanwhile are not included. Dead letters that another program holds at that moment \
(\"Get messages\" on RabbitMQ's management page, a shovel) are not visible.

Examples:
  offramp dead-letters list                                  counts, reasons and ages
  offramp dead-letters show 3f9a1c2b04                       one dead letter, by handle, command id or message id
  offramp dead-letters list --each --subscription sub-1042   those of one subscription
  offramp dead-letters replay --reason corrupt_document --dry-run
  offramp dead-letters replay --reason corrupt_document after the documents are repaired")]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::Arguments),
    Show(show::Arguments),
    Replay(replay::Arguments),
    Drop(drop::Arguments),
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.verb {
        Verb::List(arguments) => list::run(arguments).await,
        Verb::Show(arguments) => show::run(arguments).await,
        Verb::Replay(arguments) => replay::run(arguments).await,
        Verb::Drop(arguments) => drop::run(arguments).await,
    }
}
