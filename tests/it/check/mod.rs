//! `offramp check` tells the truth: about rights, about documents; and MongoDB's validators agree with the worker.

mod documents;
mod rights;
mod validators;
