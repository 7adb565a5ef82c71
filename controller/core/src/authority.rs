//! May this actor do this here? Asked in one order, whoever asks: is the actor let in at all, is it a
//! member of the project, does its role give the permission. What is not given is refused.
//!
//! A token narrows what its holder may do and never widens it: what is effective is the token's
//! scopes and the role together, and the token is asked elsewhere.

use std::fmt;
use std::str::FromStr;

/// What can be done in a project.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Permission {
    /// See VMs, images, operations and usage.
    VmRead,
    /// Create VMs.
    VmCreate,
    /// Start, stop and delete VMs.
    VmControl,
    /// Read consoles.
    VmConsole,
    /// Whatever concerns the whole tenant: its tokens, its ledger entries, its projects.
    Tenant,
}

impl Permission {
    /// Every permission.
    pub const ALL: [Self; 5] = [
        Self::VmRead,
        Self::VmCreate,
        Self::VmControl,
        Self::VmConsole,
        Self::Tenant,
    ];
}

/// What a service account is in a project.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// It looks.
    Viewer,
    /// It runs what is there: starts, stops, consoles.
    Runner,
    /// It makes and deletes too.
    Editor,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Runner, Self::Editor];

    /// As requests and rows name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Runner => "runner",
            Self::Editor => "editor",
        }
    }

    /// Whether the role gives a permission. None gives anything outside its project.
    #[must_use]
    pub fn gives(self, wanted: Permission) -> bool {
        match wanted {
            Permission::VmRead => true,
            Permission::VmControl | Permission::VmConsole => self >= Self::Runner,
            Permission::VmCreate => self >= Self::Editor,
            Permission::Tenant => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no role.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("must be viewer, runner or editor")]
pub struct ParseRoleError;

impl FromStr for Role {
    type Err = ParseRoleError;

    fn from_str(text: &str) -> Result<Self, ParseRoleError> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or(ParseRoleError)
    }
}

/// Whether a thing is there: what was deleted authorises nothing, and is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// It is.
    There,
    /// It was.
    Deleted,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Actor {
    /// Somebody whom the tenant itself gave a token: the token alone says what they may do.
    OfTenant,
    /// A service account.
    Account {
        /// Whether it is there.
        presence: Presence,
        /// Whether somebody switched it off.
        is_disabled: bool,
    },
}

/// A service account's place in a project.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Membership {
    /// What it is there.
    pub role: Role,
    /// Whether the membership is there.
    pub presence: Presence,
    /// Whether the project is.
    pub project: Presence,
}

/// Why not; the first reason in the order of asking.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denied {
    /// The actor is not let in at all.
    #[error("the service account is disabled or deleted")]
    Actor,
    /// It is no member of the project.
    #[error("the service account is no member of the project")]
    Membership,
    /// Its role does not give the permission.
    #[error("the role {role} does not permit it")]
    Permission {
        /// Its role.
        role: Role,
    },
}

/// Whether an actor may do this in a project where it has this membership, if any.
pub fn decide(
    actor: Actor,
    membership: Option<Membership>,
    wanted: Permission,
) -> Result<(), Denied> {
    let (presence, is_disabled) = match actor {
        Actor::OfTenant => return Ok(()),
        Actor::Account {
            presence,
            is_disabled,
        } => (presence, is_disabled),
    };
    if is_disabled || presence == Presence::Deleted {
        return Err(Denied::Actor);
    }
    let whole = |membership: &Membership| {
        membership.presence == Presence::There && membership.project == Presence::There
    };
    let Some(Membership { role, .. }) = membership.filter(whole) else {
        return Err(Denied::Membership);
    };
    if role.gives(wanted) {
        Ok(())
    } else {
        Err(Denied::Permission { role })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRESENCES: [Presence; 2] = [Presence::There, Presence::Deleted];

    fn actors() -> Vec<Actor> {
        let mut actors = vec![Actor::OfTenant];
        for presence in PRESENCES {
            for is_disabled in [false, true] {
                actors.push(Actor::Account {
                    presence,
                    is_disabled,
                });
            }
        }
        actors
    }

    fn memberships() -> Vec<Option<Membership>> {
        let mut memberships = vec![None];
        for role in Role::ALL {
            for presence in PRESENCES {
                for project in PRESENCES {
                    memberships.push(Some(Membership {
                        role,
                        presence,
                        project,
                    }));
                }
            }
        }
        memberships
    }

    /// What each role may do: one letter for each of `Permission::ALL`.
    const TABLE: [(Role, &str); 3] = [
        (Role::Viewer, "y...."),
        (Role::Runner, "y.yy."),
        (Role::Editor, "yyyy."),
    ];

    #[test]
    fn every_combination_is_decided_in_the_order_actor_membership_permission() {
        let mut asked = 0;
        for actor in actors() {
            for membership in memberships() {
                for (at, wanted) in Permission::ALL.into_iter().enumerate() {
                    let there = Presence::There;
                    let is_live = actor
                        == Actor::Account {
                            presence: there,
                            is_disabled: false,
                        };
                    let expected = match (actor, membership) {
                        (Actor::OfTenant, _) => Ok(()),
                        (Actor::Account { .. }, _) if !is_live => Err(Denied::Actor),
                        (Actor::Account { .. }, Some(member))
                            if (member.presence, member.project) == (there, there) =>
                        {
                            let (_, row) = TABLE
                                .into_iter()
                                .find(|(role, _)| *role == member.role)
                                .unwrap();
                            if row.as_bytes()[at] == b'y' {
                                Ok(())
                            } else {
                                Err(Denied::Permission { role: member.role })
                            }
                        }
                        (Actor::Account { .. }, _) => Err(Denied::Membership),
                    };
                    assert_eq!(
                        decide(actor, membership, wanted),
                        expected,
                        "{actor:?} {membership:?} {wanted:?}"
                    );
                    asked += 1;
                }
            }
        }
        assert_eq!(asked, 5 * 13 * 5);
    }

    #[test]
    fn no_role_reaches_beyond_its_project() {
        for role in Role::ALL {
            assert!(!role.gives(Permission::Tenant), "{role}");
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        for bad in ["", "admin", "Viewer", "owner"] {
            assert_eq!(bad.parse::<Role>(), Err(ParseRoleError), "{bad}");
        }
    }
}
