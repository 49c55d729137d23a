/* Norms of rows: x, out [rows, width]. */

#ifndef MUSICRL_NORMS_H
#define MUSICRL_NORMS_H

/* One row. */
void layer_norm_row(const float *x, const float *weight, const float *offset, float epsilon,
                    int width, float *out);
void rms_norm_row(const float *x, const float *weight, float epsilon, int width, float *out);

/* Rows less their mean, over their deviation, by weight and, if there is one, plus offset. */
void layer_norm(const float *x, const float *weight, const float *offset, float epsilon, int rows,
                int width, float *out, int threads);

/* Rows over the root of their mean square, by weight. */
void rms_norm(const float *x, const float *weight, float epsilon, int rows, int width, float *out,
              int threads);

#endif
