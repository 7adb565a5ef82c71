# $1 is how many versions of the package are there after this one: 1 on installation, 2 on upgrade.
make_users_and_folders
reload_rules
if [ "$1" -eq 1 ] && [ -n "$units" ]; then
    systemctl --no-reload enable $units
fi
reload_units
if [ "$1" -eq 1 ]; then
    act_on_units start $units
else
    act_on_units try-restart $(services)
fi
