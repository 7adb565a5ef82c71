//! The VMM's jail, attacked from inside: every attempt of `jail-attempt` is made on both kinds of
//! threads behind the jail, where it has to fail as designed, and without a jail, where it has to
//! succeed, or the first half would prove nothing. Needs root, which it gives up before each attack.

#[cfg(test)]
mod attempts;
#[cfg(test)]
mod flag;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod process;
