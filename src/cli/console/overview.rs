//! The first page: workers, queues and what waits, with the last hour.

use std::collections::VecDeque;

use axum::response::IntoResponse;
use chrono::TimeDelta;
use maud::{Markup, html};
use offramp::amqp::{QueueCount, RetryDelay};
use offramp::clock;
use offramp::store::backlog::Backlog;
use offramp_domain::command_ref::CommandType;

use super::failure::Answer;
use super::html::{ago, columns, number, table, waiting};
use super::page::{Request, Section};
use super::plot::plot;
use super::watch::{SAMPLES_MAX, Sample, Seen};
use super::workers::{State, Worker};
use crate::cli::dead_letters::short_queue;
use crate::cli::terminal::count;

/// The number of changes that the page lists.
const CHANGES_SHOWN: usize = 8;
/// After this time without a sample, the numbers on the page are old.
const STALE_AFTER: TimeDelta = TimeDelta::seconds(60);

pub async fn show(request: Request) -> Answer {
    let content = html! {
        h1 { "Overview" }
        div data-live="/state" data-every="10" { (state(&request)) }
        section aria-labelledby="changes" {
            h2 id="changes" { "Changes made here" }
            (request.app.changes.newest(CHANGES_SHOWN))
        }
    };
    Ok(request.page(Section::Overview, "Overview", &content))
}

/// What the page refreshes.
pub async fn live(request: Request) -> Answer {
    Ok(state(&request).into_response())
}

fn state(request: &Request) -> Markup {
    let Seen { samples, workers } = request.app.watch.seen();
    let Some(now) = samples.back() else {
        return html! { p role="status" { "The servers are being asked; the first numbers come in a few seconds." } };
    };
    html! {
        @if let Some(problem) = &now.database_problem { p.problem role="alert" { "MongoDB: " (problem) } }
        @if now.work.iter().all(Option::is_none) {
            p.problem role="alert" { "RabbitMQ does not say how many messages wait: it is unavailable, or its user may not ask." }
        }
        @if clock::now() - now.at > STALE_AFTER { p.problem role="alert" { "These numbers are from " (ago(now.at)) "." } }
        (tiles(&samples, now))
        section aria-labelledby="workers" { h2 id="workers" { "Workers" } (worker_table(&workers, now)) }
        section aria-labelledby="queues" { h2 id="queues" { "Queues" } (queue_table(request, &samples, now)) }
    }
}

fn tiles(samples: &VecDeque<Sample>, now: &Sample) -> Markup {
    html! {
        div.tiles {
            (tile("Commands/s", &rate(now.commands_per_second), None, samples, |sample| sample.commands_per_second))
            (tile("Emails/s", &rate(now.emails_per_second), None, samples, |sample| sample.emails_per_second))
            (tile("Undecided requests", &known(now.requests), Some("/requests"), samples, |sample| sample.requests.map(entries)))
            (tile("Emails that wait", &known(now.pending_emails), Some("/emails?state=waiting"), samples, |sample| sample.pending_emails.map(entries)))
            (tile("Failed emails", &known(now.failed_emails), Some("/emails"), samples, |sample| sample.failed_emails.map(entries)))
            (tile("Dead letters", &whole(now.dead_letters.map(messages)), Some("/dead-letters"), samples, |sample| sample.dead_letters.map(messages)))
        }
    }
}

fn tile(
    name: &str,
    value: &str,
    link: Option<&str>,
    samples: &VecDeque<Sample>,
    of: impl Fn(&Sample) -> Option<f64>,
) -> Markup {
    let values: Vec<Option<f64>> = samples.iter().map(of).collect();
    let label = format!("{name} in the last hour");
    html! {
        div.tile {
            p.name { @match link { Some(link) => { a href=(link) { (name) } } None => { (name) } } }
            p.value { (value) }
            (plot(&values, SAMPLES_MAX, &label))
            p.scale { @match most(&values) { Some(most) => { "at most " (most) } None => { "not known yet" } } }
        }
    }
}

/// The largest value, if any is known.
fn most(values: &[Option<f64>]) -> Option<String> {
    let most = values.iter().flatten().copied().reduce(f64::max)?;
    Some(if most.fract() == 0.0 { whole(Some(most)) } else { rate(Some(most)) })
}

fn worker_table(workers: &[Worker], now: &Sample) -> Markup {
    let consumers = now.work.iter().flatten().map(|queue| queue.consumers).max();
    html! {
        (table("Workers", &columns(&["Worker", "State", "Version", "What is not ready"]), &html! {
            @for Worker { address, state } in workers {
                tr {
                    td.address { (address) }
                    @match state {
                        State::Running { version, not_ready } => {
                            td { @if not_ready.is_empty() { span.badge.good { "ready" } } @else { span.badge.bad { "not ready" } } }
                            td { (version) }
                            td { @for (part, reason) in not_ready { p { strong { (part) } ": " (reason) } } }
                        }
                        State::Silent(why) => { td { span.badge.bad { "silent" } } td {} td { (why) } }
                    }
                }
            }
        }))
        @if let Some(consumers) = consumers {
            p.hint {
                "RabbitMQ has consumers of " (count(consumers.into(), "worker")) ". OFFRAMP_CONSOLE_WORKERS names those that are asked here."
            }
        }
    }
}

fn queue_table(request: &Request, samples: &VecDeque<Sample>, now: &Sample) -> Markup {
    let topology = &request.app.topology;
    let row =
        |queue: &str, now: Option<QueueCount>, has_consumers: bool, of: &dyn Fn(&Sample) -> Option<QueueCount>| {
            let name = short_queue(queue, topology);
            let values: Vec<Option<f64>> = samples.iter().map(|sample| of(sample).map(messages)).collect();
            let label = format!("Messages in {name} in the last hour");
            html! {
                tr {
                    th scope="row" { (name) }
                    td.number { (whole(now.map(messages))) }
                    td.number { @if has_consumers { (whole(now.map(|count| f64::from(count.consumers)))) } }
                    td { (plot(&values, SAMPLES_MAX, &label)) }
                }
            }
        };
    let head = html! {
        th scope="col" { "Queue" } th.number scope="col" { "Messages" } th.number scope="col" { "Consumers" } th scope="col" { "Last hour" }
    };
    html! {
        (table("Queues", &head, &html! {
            @for (place, kind) in CommandType::ALL.into_iter().enumerate() {
                (row(&topology.work_queue(kind), at(&now.work, place), true, &|sample| at(&sample.work, place)))
            }
            @for (place, delay) in RetryDelay::ALL.into_iter().enumerate() {
                (row(&topology.retry_queue(delay), at(&now.retry, place), false, &|sample| at(&sample.retry, place)))
            }
            (row(&topology.dead_letter_queue(), now.dead_letters, false, &|sample| sample.dead_letters))
        }))
        p.hint {
            "Their names begin with " (topology.command_exchange()) ". Messages are those that no worker holds. Events that wait to be published: "
            (known(now.pending_events)) "; failed: " (known(now.failed_events)) "."
        }
    }
}

fn at(counts: &[Option<QueueCount>], place: usize) -> Option<QueueCount> {
    counts.get(place).copied().flatten()
}

fn messages(count: QueueCount) -> f64 {
    f64::from(count.messages)
}

#[allow(clippy::cast_precision_loss, reason = "at most some ten thousand")]
fn entries(backlog: Backlog) -> f64 {
    backlog.count as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
fn whole(value: Option<f64>) -> String {
    value.map_or_else(|| "?".to_owned(), |value| number(value as u64))
}

fn known(backlog: Option<Backlog>) -> String {
    backlog.map_or_else(|| "?".to_owned(), waiting)
}

fn rate(value: Option<f64>) -> String {
    value.map_or_else(|| "?".to_owned(), |value| format!("{value:.1}"))
}
