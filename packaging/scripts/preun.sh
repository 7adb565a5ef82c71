# $1 is how many versions stay: 0 on removal, 1 on upgrade, when everything runs on.
if [ "$1" -eq 0 ] && [ -n "$units" ]; then
    act_on_units stop $units
    systemctl --no-reload disable $units || say_failed disable $units
fi
