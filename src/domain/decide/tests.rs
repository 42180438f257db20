//! The rule table of the contract (§4), a row per cell.
