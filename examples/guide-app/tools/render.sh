# render.sh AVERAGES TEMPLATE: the page with one row for the last day of each symbol.
set -eu
rows=$(awk -F, '{ last[$1] = "<tr><td>" $1 "<td>" $3 "<td>" $4 "<td>" $5 "</tr>" } END { for (s in last) print last[s] }' "$1" | sort)
awk -v rows="$rows" '{ if ($0 == "@rows@") print rows; else print }' "$2"
