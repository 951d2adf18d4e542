# Prints "symbol,day,cents" for eight symbols: a walk that is the same each time.
BEGIN {
	split("AAA BBB CCC DDD EEE FFF GGG HHH", symbols, " ")
	seed = 20251017
	for (day = 1; day <= days; day++)
		for (i = 1; i <= 8; i++) {
			seed = (seed * 16807) % 2147483647
			cents[i] += seed % 201 - 100
			print symbols[i] "," day "," 100000 + cents[i]
		}
}
