//! Servers at their limits: a database that takes no writes, a broker short of memory, documents as large as MongoDB allows. Nothing is
//! lost, and the worker says what is wrong.

mod large_documents;
mod mongodb;
mod rabbitmq;
