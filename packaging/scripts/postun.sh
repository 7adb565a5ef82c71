if [ "$1" -eq 0 ]; then
    reload_units
    say_where_the_state_is
fi
