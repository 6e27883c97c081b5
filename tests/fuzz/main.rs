//! What comes from outside, with anything in it: what a request can say, and records that a hostile disk could hold. Nothing
//! panics, what is accepted is printed and read again as the same, and what is refused is named. The parsers of `store`
//! and `host` have theirs beside the code. `PROPTEST_CASES` raises how often.

#[cfg(test)]
#[path = "../common/mod.rs"]
#[expect(dead_code, reason = "other tests need more of the machine")]
mod common;
#[cfg(test)]
mod records;
#[cfg(test)]
mod requests;
