//! May this actor do this here? Asked in one order, whoever asks: is the actor let in at all, is it a
//! member of the project, does its role give the permission. What is not given is refused.
//!
//! A token narrows what its holder may do and never widens it: what is effective is the token's
//! scopes and the role together, and the token is asked elsewhere.

use berth_api::rest::Role;

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

/// Whether a role gives a permission. None gives anything outside its project.
#[must_use]
pub fn gives(role: Role, wanted: Permission) -> bool {
    match wanted {
        Permission::VmRead => true,
        Permission::VmControl | Permission::VmConsole => role >= Role::Runner,
        Permission::VmCreate => role >= Role::Editor,
        Permission::Tenant => false,
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

/// Whether an actor is let in at all.
pub fn admit(actor: Actor) -> Result<(), Denied> {
    match actor {
        Actor::OfTenant
        | Actor::Account {
            presence: Presence::There,
            is_disabled: false,
        } => Ok(()),
        Actor::Account { .. } => Err(Denied::Actor),
    }
}

/// Whether an actor may do this in a project where it has this membership, if any.
pub fn decide(
    actor: Actor,
    membership: Option<Membership>,
    wanted: Permission,
) -> Result<(), Denied> {
    if actor == Actor::OfTenant {
        return Ok(());
    }
    admit(actor)?;
    let whole = |membership: &Membership| {
        membership.presence == Presence::There && membership.project == Presence::There
    };
    let Some(Membership { role, .. }) = membership.filter(whole) else {
        return Err(Denied::Membership);
    };
    if gives(role, wanted) {
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
            assert!(!gives(role, Permission::Tenant), "{role}");
        }
    }

    #[test]
    fn who_is_let_in_is_asked_before_anything_else() {
        for actor in actors() {
            let first = decide(actor, None, Permission::VmRead);
            match admit(actor) {
                Ok(()) => assert_ne!(first, Err(Denied::Actor), "{actor:?}"),
                Err(denied) => assert_eq!(first, Err(denied), "{actor:?}"),
            }
        }
    }
}
