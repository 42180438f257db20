//! A second, independent implementation of the rules, to compare the program with.
//!
//! It finds dates by walking the calendar day by day instead of by month arithmetic, and uses none of the program's types.

use chrono::{Datelike, NaiveDate};
use serde_json::Value;

/// A subscription in the model.
#[allow(clippy::struct_excessive_bools, reason = "a model of what documents say")]
#[derive(Clone, Debug)]
pub struct Model {
    pub organization: String,
    pub account: String,
    pub fixed_day: bool,
    pub day: u32,
    pub next_on: NaiveDate,
    pub expires_on: Option<NaiveDate>,
    pub last_invoice: String,
    pub client_may_cancel: bool,
    pub tells_client: bool,
    pub status: &'static str,
    pub ends_on: Option<NaiveDate>,
    pub final_billing_on: Option<NaiveDate>,
    pub request_open: bool,
    pub decision: Option<&'static str>,
    pub failures: usize,
    pub history: Vec<(&'static str, &'static str, Option<NaiveDate>)>,
    /// The ids of the commands that were not rejected.
    pub applied: Vec<String>,
}

/// The expected outcome of a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Emails as (template, whether to the organization), and the type of the event.
    Applied {
        emails: Vec<(&'static str, bool)>,
        event: Option<&'static str>,
    },
    Unchanged,
    Rejected(&'static str),
}

fn is_billing_date(date: NaiveDate, day: u32) -> bool {
    let is_last_of_month = date.succ_opt().unwrap().day() == 1;
    date.day() == day || (is_last_of_month && date.day() < day)
}

fn walk(from: NaiveDate, forward: bool, mut stop: impl FnMut(NaiveDate) -> bool) -> NaiveDate {
    let mut date = from;
    loop {
        date = if forward { date.succ_opt().unwrap() } else { date.pred_opt().unwrap() };
        if stop(date) {
            return date;
        }
    }
}

impl Model {
    fn billing_before(&self, date: NaiveDate) -> NaiveDate {
        walk(date, false, |date| is_billing_date(date, self.day))
    }

    fn billing_after(&self, date: NaiveDate) -> NaiveDate {
        walk(date, true, |date| is_billing_date(date, self.day))
    }

    /// (last day, last invoice) for an end in the month that starts with `first`.
    fn end_in(&self, first: NaiveDate) -> (NaiveDate, NaiveDate) {
        let before = first.pred_opt().unwrap();
        let billing = self.billing_after(before);
        let last_day = if self.fixed_day {
            walk(before, true, |date| date.succ_opt().unwrap().day() == 1)
        } else {
            billing.pred_opt().unwrap()
        };
        (last_day, self.billing_before(first))
    }

    fn end_before_next(&self) -> (NaiveDate, NaiveDate) {
        (self.next_on.pred_opt().unwrap(), self.billing_before(self.next_on))
    }

    fn is_over(&self) -> bool {
        ["cancelled", "expired", "removed"].contains(&self.status)
    }

    /// Applies the command to the model and returns its outcome.
    pub fn decide(&mut self, command: &Value) -> Answer {
        let id = command["id"].as_str().unwrap();
        let data = &command["data"];
        if self.applied.iter().any(|applied| applied == id) {
            // A removed subscription remembers what was applied too.
            return if data["organization_id"] == self.organization {
                Answer::Unchanged
            } else {
                Answer::Rejected("wrong_organization")
            };
        }
        if data["organization_id"] != self.organization {
            return Answer::Rejected("wrong_organization");
        }
        let answer = self.answer(command["type"].as_str().unwrap(), data);
        if !matches!(answer, Answer::Rejected(_)) {
            self.applied.push(id.to_owned());
        }
        answer
    }

    fn answer(&mut self, kind: &str, data: &Value) -> Answer {
        let is_admin = data["actor"]["role"] == "admin";
        let is_owner = data["actor"]["role"] == "client" && data["actor"]["account_id"] == self.account;
        let own_action = |template| {
            let mut emails = vec![(template, true)];
            if self.tells_client {
                emails.push((template, false));
            }
            emails
        };
        match (kind, data["via"].as_str()) {
            ("payment.failure", _) => {
                if self.status == "removed" {
                    return Answer::Rejected("already_ended");
                }
                self.failures += 1;
                Answer::Applied {
                    emails: vec![("payment-failed", true), ("payment-failed", false)],
                    event: Some("payment.failure-recorded"),
                }
            }
            ("subscription.cancellation", Some("purchases")) => {
                if !is_admin {
                    return Answer::Rejected("forbidden");
                }
                if self.is_over() {
                    return Answer::Rejected("already_ended");
                }
                let end = match data["month"].as_str() {
                    Some(month) => {
                        let first: NaiveDate = format!("{month}-01").parse().unwrap();
                        if first < self.next_on && first.month() != self.next_on.month() {
                            return Answer::Rejected("month_already_invoiced");
                        }
                        self.end_in(first)
                    }
                    None => self.end_before_next(),
                };
                self.schedule(end, "superseded", vec![("cancelled-by-admin", false)])
            }
            ("subscription.cancellation", Some("account")) => {
                if !is_owner {
                    return Answer::Rejected("forbidden");
                }
                if !self.client_may_cancel {
                    return Answer::Rejected("request_required");
                }
                if self.is_over() {
                    return Answer::Rejected("already_ended");
                }
                let emails = own_action("cancelled-by-client");
                self.schedule(self.end_before_next(), "superseded", emails)
            }
            ("subscription.cancellation", Some("invoice")) => {
                if !is_admin {
                    return Answer::Rejected("forbidden");
                }
                if self.is_over() {
                    return Answer::Rejected("already_ended");
                }
                if data["invoice_id"] != self.last_invoice {
                    return Answer::Rejected("not_last_invoice");
                }
                self.go("removed", None);
                Answer::Applied { emails: vec![("removed-by-admin", false)], event: Some("subscription.removed") }
            }
            ("subscription.cancellation-request", _) => {
                if !is_owner {
                    return Answer::Rejected("forbidden");
                }
                match self.status {
                    "cancelled" | "expired" | "removed" => Answer::Rejected("already_ended"),
                    "cancellation_scheduled" => Answer::Rejected("already_scheduled"),
                    "cancellation_requested" => Answer::Unchanged,
                    _ => {
                        let emails = own_action("cancellation-requested");
                        self.go("cancellation_requested", None);
                        self.request_open = true;
                        self.decision = None;
                        Answer::Applied { emails, event: Some("subscription.cancellation-requested") }
                    }
                }
            }
            ("subscription.cancellation-confirmation", _) => {
                if !is_admin {
                    return Answer::Rejected("forbidden");
                }
                match self.status {
                    "cancelled" | "expired" | "removed" => return Answer::Rejected("already_ended"),
                    "cancellation_scheduled" => return Answer::Rejected("already_scheduled"),
                    "active" => return Answer::Rejected("no_pending_request"),
                    _ => {}
                }
                if data["decision"] == "decline" {
                    self.go("active", None);
                    self.request_open = false;
                    self.decision = Some("decline");
                    return Answer::Applied {
                        emails: vec![("request-declined", false)],
                        event: Some("subscription.cancellation-declined"),
                    };
                }
                let end = match data["final_billing_date"].as_str() {
                    Some(last) => {
                        let last: NaiveDate = last.parse().unwrap();
                        if !is_billing_date(last, self.day) {
                            return Answer::Rejected("not_a_billing_date");
                        }
                        if last < self.billing_before(self.next_on) {
                            return Answer::Rejected("final_billing_date_passed");
                        }
                        (self.billing_after(last).pred_opt().unwrap(), last)
                    }
                    None => self.end_before_next(),
                };
                self.schedule(end, "accept", vec![("request-accepted", false)])
            }
            other => panic!("the model does not know {other:?}"),
        }
    }

    fn schedule(
        &mut self,
        (ends_on, last): (NaiveDate, NaiveDate),
        decision: &'static str,
        emails: Vec<(&'static str, bool)>,
    ) -> Answer {
        if self.expires_on.is_some_and(|day| ends_on >= self.billing_after(day)) {
            return Answer::Rejected("expires_earlier");
        }
        if self.status == "cancellation_scheduled" {
            match ends_on.cmp(&self.ends_on.unwrap()) {
                std::cmp::Ordering::Equal => return Answer::Unchanged,
                std::cmp::Ordering::Greater => return Answer::Rejected("later_than_scheduled"),
                std::cmp::Ordering::Less => {}
            }
        }
        self.go("cancellation_scheduled", Some(ends_on));
        self.ends_on = Some(ends_on);
        self.final_billing_on = Some(last);
        if self.request_open {
            self.request_open = false;
            self.decision = Some(decision);
        }
        Answer::Applied { emails, event: Some("subscription.cancellation-scheduled") }
    }

    fn go(&mut self, status: &'static str, ends_on: Option<NaiveDate>) {
        self.history.push((self.status, status, ends_on));
        self.status = status;
    }
}
